"""How whoever watches a job is woken, and how many who ask for the same are served by one read."""
