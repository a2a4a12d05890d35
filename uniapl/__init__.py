"""uniapl: a reproducible benchmark suite around the paper UniAPL (arXiv 2509.25148)."""

import os

# Before any library reads them: nothing here goes to a network, and progress is told by the stages themselves.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
