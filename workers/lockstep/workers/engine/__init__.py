"""The exact engine: pure torch, no Ray. It runs alone, under torchrun, or inside a Ray actor."""

from lockstep.workers.engine.data_module import DataModule, Examples
from lockstep.workers.engine.errors import DataError, EngineError, NonFiniteLoss, PeerLost, RanksDisagree, Stopped
from lockstep.workers.engine.group import Group
from lockstep.workers.engine.metrics import Point, Progress
from lockstep.workers.engine.module import Classifier, Module, Regressor
from lockstep.workers.engine.trainer import ENGINE_VERSION, Listener, Result, Trainer, initialisation_seed

__all__ = [
    "ENGINE_VERSION",
    "Classifier",
    "DataError",
    "DataModule",
    "EngineError",
    "Examples",
    "Group",
    "Listener",
    "Module",
    "NonFiniteLoss",
    "PeerLost",
    "Point",
    "Progress",
    "RanksDisagree",
    "Regressor",
    "Result",
    "Stopped",
    "Trainer",
    "initialisation_seed",
]
