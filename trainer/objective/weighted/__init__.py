"""Next-token cross-entropy in which documents and turns count by their weight."""
