"""A pool of processes, and a log with somebody who takes it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lockstep.workers.launcher import pool as pool_module
from lockstep.workers.logs import spool as spool_module
from lockstep.workers.logs import sweep as sweep_module
from lockstep.workers.logs.spool import Spool
from tests.support.log_stage import LABEL, Coordinator, serving_logs
from tests.support.pool_stage import Clock, Make, PoolStage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pool_module, "time", clock)
    monkeypatch.setattr(pool_module, "awake_clock", clock)
    monkeypatch.setattr(pool_module, "ASK_AGAIN_AFTER_S", 0.0)
    return clock


@pytest.fixture
def make(clock: Clock) -> Make:
    return lambda **options: PoolStage(clock, **options)


@pytest.fixture
def stage(make: Make) -> PoolStage:
    return make()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (spool_module, sweep_module):
        monkeypatch.setattr(module, "BASE", tmp_path / "spools")
    return tmp_path / "spools"


@pytest.fixture
def spool(base: Path) -> Iterator[Spool]:
    made = Spool.create(base / "here", LABEL)
    yield made
    made.close()


@pytest.fixture
def coordinator() -> Iterator[tuple[Coordinator, str]]:
    with serving_logs() as served:
        yield served
