"""Everything that the rest of a training run depends on, in memory and in checkpoints."""
