"""Replay against forgetting: how much of it, when, and the controller that answers to held-out loss."""
