"""What makes sure that a module and its data give the same bits on any number of ranks."""
