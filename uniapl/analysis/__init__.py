"""From finished directories to tables and figures. Imports neither torch nor transformers."""
