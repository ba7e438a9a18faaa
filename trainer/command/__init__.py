"""One verb of the command line a file; with `run` the only room that sees the whole configuration."""
