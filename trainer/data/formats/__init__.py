"""One file a format: what its columns are, and how its rows are read."""
