"""The workers: launcher, Ray actors and the exact engine."""
