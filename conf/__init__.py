"""The Hydra configuration files; in the package they are `trainer.conf`."""
