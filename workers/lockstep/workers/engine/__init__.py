"""The exact engine: pure torch, no Ray. It runs alone, under torchrun, or inside a Ray actor."""

from lockstep.contract.facts import ENGINE_VERSION, STEP_BOUNDS_S, Phase
from lockstep.workers.engine.data_module import DataModule, Examples
from lockstep.workers.engine.errors import (
    DataError,
    DeviceUnusable,
    EngineError,
    HardwareDiffers,
    ModelError,
    NonFiniteGradient,
    NonFiniteLoss,
    NonFiniteParameters,
    NonFiniteStep,
    NotDeterministic,
    PeerLost,
    RanksDisagree,
    Stopped,
)
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.ledger import Account, Ledger
from lockstep.workers.engine.listener import Activity, Listener, Result, Wish
from lockstep.workers.engine.loop import Origin, Regroup
from lockstep.workers.engine.metrics import Point, Progress
from lockstep.workers.engine.module import Classifier, Module, Regressor
from lockstep.workers.engine.trainer import Trainer, initialisation_seed

__all__ = [
    "ENGINE_VERSION",
    "STEP_BOUNDS_S",
    "Account",
    "Activity",
    "Classifier",
    "DataError",
    "DataModule",
    "DeviceUnusable",
    "EngineError",
    "Examples",
    "Group",
    "HardwareDiffers",
    "Ledger",
    "Listener",
    "ModelError",
    "Module",
    "NonFiniteGradient",
    "NonFiniteLoss",
    "NonFiniteParameters",
    "NonFiniteStep",
    "NotDeterministic",
    "Origin",
    "PeerLost",
    "Phase",
    "Point",
    "Progress",
    "RanksDisagree",
    "Regressor",
    "Regroup",
    "Result",
    "Stopped",
    "Trainer",
    "Wish",
    "initialisation_seed",
]
