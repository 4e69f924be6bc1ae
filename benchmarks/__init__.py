"""Claims of speed, memory and accuracy, each a command that prints a table."""
