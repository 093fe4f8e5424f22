"""Where the time of workers went."""
