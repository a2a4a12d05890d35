"""POLAR (InternLM/POLAR, arXiv 2507.05197), the paper's discriminator, without remote code; docs/discriminator.md."""
