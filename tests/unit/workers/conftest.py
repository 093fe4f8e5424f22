"""A pool of processes for tests."""

import pytest

from lockstep.workers import pool as pool_module
from tests.unit.workers.pool_stage import Clock, Make, PoolStage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "ASK_AGAIN_AFTER_S", 0.0)
    return clock


@pytest.fixture
def make(clock: Clock) -> Make:
    return lambda **options: PoolStage(clock, **options)


@pytest.fixture
def stage(make: Make) -> PoolStage:
    return make()
