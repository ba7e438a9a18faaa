"""Learning from a teacher that is another model."""
