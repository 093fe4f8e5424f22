"""The exact engine: pure torch, no Ray. It runs alone, under torchrun, or inside a Ray actor."""
