"""What a frozen model says of the text that another one learns."""
