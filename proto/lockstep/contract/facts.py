"""What the server and the workers must both hold true."""

from __future__ import annotations

from enum import IntEnum

ENGINE_VERSION = "2"
"""Version of the engine's arithmetic. It changes whenever the same spec and data would give other bits than before."""

STEP_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the counts of step durations, as the workers count and the server publishes."""


class Phase(IntEnum):
    """What a rank's time is spent on; ledger.proto says what belongs where."""

    START_UP = 0
    DATA = 1
    HOST_TO_DEVICE = 2
    FORWARD = 3
    BACKWARD = 4
    EXCHANGE = 5
    EXCHANGE_WAIT = 6
    OPTIMIZER = 7
    VALIDATION = 8
    CHECKPOINT = 9
    HEALING = 10
    IDLE = 11


PHASES = tuple(phase.name.lower() for phase in Phase)
"""Names of the phases, in the order of the fields of PhaseSeconds."""
