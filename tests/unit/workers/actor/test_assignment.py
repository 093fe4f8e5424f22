"""What a worker tells of its part in an attempt."""

from pathlib import Path
from typing import Any

import pytest

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.workers.actor import assignment
from lockstep.workers.actor.assignment import Assignment, Location
from lockstep.workers.calls import Status
from lockstep.workers.datasets import DataCache
from lockstep.workers.engine import PeerLost

WAIT_S = 20.0


@pytest.mark.parametrize(("error", "has_lost_peer"), [(PeerLost("rank 1 is gone"), True), (ValueError("no"), False)])
def test_a_worker_says_whether_it_has_failed_since_it_could_not_reach_another_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, has_lost_peer: bool
) -> None:
    def train(*args: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(assignment, "train", train)
    monkeypatch.setattr(assignment, "LAST_WORDS_S", 0.0)  # there is no coordinator
    order = StartGang(job_id="job", attempt=1, coordinator_address="127.0.0.1:1")
    place = Location("127.0.0.1", "node-1")
    part = Assignment(order, 0, 0.0, place, DataCache(0), tmp_path, lambda: None, dict)
    part.start()
    status: Status | None = None
    while status is None or not status.has_ended:
        status = part.status(status, WAIT_S)
    assert status.error_bytes
    assert status.has_lost_peer == has_lost_peer
