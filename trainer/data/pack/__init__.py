"""Packs of whole documents, and micro-batches of packs."""
