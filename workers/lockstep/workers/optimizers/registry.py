"""Which builder makes which kind of optimizer."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lockstep.workers.registry import Registry

builds: Registry[Callable[[Any, list[nn.Parameter]], torch.optim.Optimizer]] = Registry("optimizer")
"""Registers a builder: of the message of its kind and parameters, the optimizer over these, in torch's own arithmetic.

It is called more than once: with all parameters, and again with one flat parameter where that makes no difference but
for speed.
"""
