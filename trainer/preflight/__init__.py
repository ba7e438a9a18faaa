"""What a node must show before ranks start: measured on every node, judged in one place."""
