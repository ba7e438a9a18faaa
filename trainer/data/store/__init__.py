"""Token stores: written whole, named by digest, checked when they are read."""
