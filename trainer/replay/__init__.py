"""Self-generated replay: prompts, sampling, filters, and the store that is published."""
