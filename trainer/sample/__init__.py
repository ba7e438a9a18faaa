"""Text from a model: prompts, samplers, filters, the store of what is kept."""
