"""What a micro-batch is worth: a loss sum and a count."""
