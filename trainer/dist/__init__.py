"""Ranks, process groups, reductions and seeds."""
