"""Parameter groups, optimizer and learning-rate schedules."""
