"""What a worker logs of the error that ends its assignment."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lockstep.workers.actor import assignment
from lockstep.workers.actor.assignments import Assignments
from lockstep.workers.calls import name_of
from tests.unit.workers.actor.test_worker import (  # noqa: F401  fixtures
    idle,
    make_worker,
    order_of,
    slate,
    wait_for_status,
)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("data", [("error", "this worker cannot go on: DATA_INVALID: ")]),
        ("batch", [("error", "this worker cannot go on: DATA_INVALID: training.batch_size: 11 is more than the 10 ")]),
        ("code", [("exception", "this worker cannot go on")]),
    ],
)
def test_what_a_user_can_mend_is_logged_in_one_line(
    idle: Assignments,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    what: str,
    said: list[tuple[str, str]],
) -> None:
    order = order_of()
    if what == "data":
        order.spec.data.idx.root = str(tmp_path / "nowhere")
        order.spec.model.softmax_regression.SetInParent()
    elif what == "batch":
        order.spec.training.batch_size = 11
    else:
        monkeypatch.setattr(assignment, "train", lambda *_, **__: 1 / 0)
    told: list[tuple[str, str]] = []
    lines = SimpleNamespace(
        info=lambda *_: None,
        error=lambda words, *args: told.append(("error", words % args)),
        exception=lambda words: told.append(("exception", words)),
    )
    monkeypatch.setattr(assignment, "log", lines)
    idle.begin(order.SerializeToString(), 0, 0.0)
    wait_for_status(idle, name_of(order, 0), "has_ended")
    assert [(how, words[: len(expected)]) for (how, words), (_, expected) in zip(told, said, strict=True)] == said
