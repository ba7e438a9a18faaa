"""Sources, cleaning, tokens, packs, stores, the plan and the loader."""
