"""Benchmark tasks by lm-eval on the ranks of a run."""
