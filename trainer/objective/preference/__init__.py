"""Losses of preferences: pairs of answers to one prompt, and answers with a label."""
