"""One run: its parts in order, the loop, what is saved, what is told."""
