"""What is proved while a run starts, saves and goes on."""
