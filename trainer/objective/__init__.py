"""What a run minimises: the contract, the builder, and one folder an objective."""
