"""Rounds: the model that trains answers prompts of the data, and the next steps learn from its answers."""
