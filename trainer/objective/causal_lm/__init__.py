"""Next-token cross-entropy, with KL to the base on replay where it is asked for."""
