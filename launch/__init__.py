"""What starts runs: the quickstart, batch templates, preflight. In the package: `trainer.launch`. No torch."""
