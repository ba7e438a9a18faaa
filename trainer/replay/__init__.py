"""Replay against forgetting: how much of it, when, the controller, and samples of the base model as replay."""
