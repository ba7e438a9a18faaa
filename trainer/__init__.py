"""Palimpsest: adapt open-weight language models on DeepSpeed. Importing it loads no torch."""

__version__ = "0.1.0"
