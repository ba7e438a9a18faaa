"""Renders conversations, accounts for all that they hold, and marks what the assistant wrote."""
