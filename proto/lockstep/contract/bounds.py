"""Bounds that the server and the workers both keep."""

from __future__ import annotations

MOST_EPOCHS = 1_000_000
MOST_STEPS = 1_000_000_000
"""Of a job, and between two points, validations or checkpoints."""
MOST_SHARDS = 1_024
"""Of a minibatch, and so workers of a job."""
MOST_CPUS_PER_WORKER = 1_024

LENET_LEAST_PIXELS = 12
"""Least height and width of images for LeNet: below it the second pooling has nothing left to pool."""

MOST_NOTES = 100
"""Notes of one report; more are dropped."""
LONGEST_LINE_BYTES = 8 << 10
"""A longer line of a log is cut into several."""
MOST_MANIFEST_BYTES = 64 << 20
"""Of the manifest of a checkpoint."""
