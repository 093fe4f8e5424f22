"""Which builder makes which kind of model."""

from collections.abc import Callable
from typing import Any

from lockstep.workers.engine import DataModule, Module
from lockstep.workers.registry import Registry

builds: Registry[Callable[[Any, DataModule], Module]] = Registry("model")
"""Registers a builder: of the message of its kind and the data, the module with its initial weights.

The generators are seeded before it is called. It raises DataError when the model cannot be trained on the data.
"""
