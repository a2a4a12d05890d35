"""uniapl: a reproducible benchmark suite around the paper UniAPL (arXiv 2509.25148)."""

__version__ = "0.1.0"
