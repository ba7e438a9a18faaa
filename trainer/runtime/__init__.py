"""Signals, logging and garbage collection of one process."""
