"""The output layer: losses, log-probabilities and logits in chunks."""
