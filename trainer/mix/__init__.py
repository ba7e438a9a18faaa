"""Which pack comes next: pools, shares, the replay ratio."""
