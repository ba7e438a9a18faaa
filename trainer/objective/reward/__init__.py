"""Scores of answers, learnt from pairs: a reward model."""
