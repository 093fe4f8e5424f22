"""What owns the truth: the live jobs, everything that happens to them, and the orders that follow from it."""
