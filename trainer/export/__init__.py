"""What a run leaves: whole models and adapters in files that others read."""
