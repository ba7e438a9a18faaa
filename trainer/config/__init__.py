"""The run configuration as plain dataclasses. No torch in this package."""
