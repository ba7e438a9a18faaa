"""What a run needs before it is started: parameters, memory, adapters. Reads config.json; loads no torch."""
