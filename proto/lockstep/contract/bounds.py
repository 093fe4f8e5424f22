"""Bounds that the server and the workers both keep."""

from __future__ import annotations

LENET_LEAST_PIXELS = 12
"""Least height and width of images for LeNet: below it the second pooling has nothing left to pool."""
