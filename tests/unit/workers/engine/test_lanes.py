"""What is exchanged beside the backward pass comes behind what it needs, and before what needs it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lockstep.workers.engine import Group, PeerLost
from lockstep.workers.engine.exchange.overlap import StreamLane, ThreadLane


class PlayedStream:
    """Plays a device's second stream, and writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.marks = 0
        self.is_broken = False

    def note(self) -> Any:
        self.marks += 1
        return self.marks

    @contextlib.contextmanager
    def behind(self, mark: object) -> Iterator[None]:
        self.told.append(f"behind {mark}")
        yield
        self.told.append("done")

    def join(self) -> None:
        if self.is_broken:
            raise RuntimeError("CUDA error")
        self.told.append("join")


Lane = ThreadLane | StreamLane
LANES: list[Callable[[PlayedStream], Lane]] = [ThreadLane, StreamLane]


@pytest.fixture(params=LANES, ids=["in a thread", "in a stream"])
def lane_and_stream(request: pytest.FixtureRequest) -> Iterator[tuple[Lane, PlayedStream]]:
    stream = PlayedStream()
    lane = request.param(stream)
    yield lane, stream
    lane.close(Group())


def test_work_comes_behind_what_was_given_before_it_and_before_what_is_given_after(
    lane_and_stream: tuple[Lane, PlayedStream],
) -> None:
    lane, stream = lane_and_stream
    for name in ("a", "b"):
        lane.run(lambda name=name: stream.told.append(name))  # type: ignore[misc]
    lane.join()
    assert stream.told == ["behind 1", "a", "done", "behind 2", "b", "done", "join"]


def test_marks_are_set_by_whoever_gives_the_work() -> None:
    stream, started, may_go_on = PlayedStream(), threading.Event(), threading.Event()
    lane = ThreadLane(stream)

    def hold() -> None:
        started.set()
        assert may_go_on.wait(10)

    lane.run(hold)
    assert started.wait(10)
    lane.run(lambda: None)
    assert stream.marks == 2, "the second one while the first work was still under way"
    may_go_on.set()
    lane.join()
    lane.close(Group())


def test_a_failure_is_raised_where_the_work_is_waited_for_and_nothing_is_done_after_it() -> None:
    stream = PlayedStream()
    lane = ThreadLane(stream)

    def fail() -> None:
        raise PeerLost("worker 1 left")

    lane.run(fail)
    lane.run(lambda: stream.told.append("never"))
    with pytest.raises(PeerLost, match="worker 1 left"):
        lane.join()
    assert "never" not in stream.told
    lane.close(Group())
    assert stream.told[-1] == "join", "memory is reused when the device has left it"


def test_an_exchange_that_is_given_up_has_the_device_finish_first_whatever_is_wrong_with_it(
    lane_and_stream: tuple[Lane, PlayedStream],
) -> None:
    lane, stream = lane_and_stream
    lane.close(Group())
    assert stream.told == ["join"]
    stream.is_broken = True
