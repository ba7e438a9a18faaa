"""What trains of a model: everything, adapters, virtual tokens, new tokens."""
