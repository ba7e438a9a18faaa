"""From documents to token ids and marks."""
