"""Held-out losses and the proofs made on the loaded model."""
