"""Tokenizer, weights, attention, kernels and activation checkpointing."""
