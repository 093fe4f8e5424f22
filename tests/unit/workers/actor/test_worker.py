"""A worker's process from one assignment to the next; without Ray, which only calls its methods."""

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from lockstep.v1.internal_service_pb2 import StartGang
from lockstep.v1.launcher_pb2 import LauncherOptions
from lockstep.workers.actor import assignment, assignments
from lockstep.workers.actor.assignment import Assignment
from lockstep.workers.actor.assignments import Assignments, Unfit
from lockstep.workers.calls import Description, Status, name_of
from lockstep.workers.engine import ENGINE_VERSION
from tests.support.processes import in_a_fresh_process

WAIT_S = 20.0
ROOMY = LauncherOptions(data_cache_bytes=1 << 20, warm_memory_bytes=1 << 40)
attempts = itertools.count(1)


class RayContext:
    namespace = "tests-of-a-worker"

    def get_node_id(self) -> str:
        return "node-1"

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        return {"GPU": ["2", "GPU-8f6c"], "TPU": []}


class PlayedSlate:
    """A process of which something may be left.

    Attributes:
        left: what its last job has left.
    """

    def __init__(self) -> None:
        self.left: list[str] = []

    def expect_threads(self) -> None:
        pass

    def put_back(self) -> list[str]:
        return self.left


@pytest.fixture
def slate() -> PlayedSlate:
    return PlayedSlate()


@pytest.fixture
def make_worker(monkeypatch: pytest.MonkeyPatch, slate: PlayedSlate) -> Iterator[Any]:
    monkeypatch.setattr(ray, "get_runtime_context", RayContext)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    monkeypatch.setattr(assignments, "CleanSlate", lambda: slate)
    monkeypatch.setattr(assignments, "POLL_S", 0.2)
    monkeypatch.setattr(assignment, "LAST_WORDS_S", 0.0)  # there is no coordinator
    made = []

    def make(options: LauncherOptions = ROOMY, gpus: float = 0.0) -> Assignments:
        made.append(Assignments(options, 1.0, gpus))
        return made[-1]

    yield make
    for one in made:
        end(one)
        one._orphaned.cancel()


@pytest.fixture
def idle(make_worker: Any) -> Assignments:
    return make_worker()


def order_of(attempt: int = 0, epoch: int = 1, owner: str = "ann") -> StartGang:
    """An order for a small job; each has a name of its own."""
    order = StartGang(job_id="job", attempt=attempt or next(attempts), epoch=epoch, owner=owner)
    order.coordinator_address = "127.0.0.1:1"
    order.spec.model.linear_regression.SetInParent()
    order.spec.data.synthetic_regression.w.append(1.0)
    order.spec.data.synthetic_regression.train_size = order.spec.data.synthetic_regression.validation_size = 10
    order.spec.optimizer.sgd.learning_rate = 0.1
    order.spec.training.max_steps, order.spec.training.batch_size, order.spec.training.log_every_steps = 1, 2, 1
    order.spec.resources.shards, order.spec.resources.cpus_per_worker = 1, 1
    order.spec.recovery.hang_timeout_s = 30
    return order


def begin(one: Assignments, order: StartGang, number: int = 0) -> str:
    """Give a worker an assignment; returns its name, when the worker waits for a group."""
    one.begin(order.SerializeToString(), number, 0.0)
    name = name_of(order, number)
    wait_for_status(one, name, "is_prepared")
    return name


def wait_for_status(one: Assignments, name: str, what: str) -> Status:
    """Wait until something has happened to a worker."""
    known = None
    for _ in range(int(WAIT_S / assignments.POLL_S)):
        known = one.status(name, known)
        if getattr(known, what):
            return known
    raise AssertionError(f"never {what}: {known}")


def end(one: Assignments) -> Status:
    """Have a worker's assignment end, if it has one."""
    current = one._assignment
    if current is None:
        return Status()
    current.membership.dismiss()
    current._thread.join(WAIT_S)
    assert current.has_ended
    return current.status(None, 0)


def test_an_assignment_that_is_begun_twice_is_begun_once(idle: Assignments) -> None:
    order = order_of()
    first = idle.begin(order.SerializeToString(), 0, 0.0)
    current = idle._assignment
    assert idle.begin(order.SerializeToString(), 0, 0.0) == first
    assert idle._assignment is current


def test_a_worker_does_one_assignment_after_another(idle: Assignments) -> None:
    for _ in range(3):
        name = begin(idle, order_of())
        told = end(idle)
        assert (told.is_reusable, told.error_bytes) == (True, b"")
        assert told.has_left_log, "nobody takes what it has printed"
        assert told.memory_bytes > 0
        rest = idle.rest(name, 0)
        assert rest.data_bytes == 20 * 8
    assert idle.describe(1, "").order_bytes == b""


def test_a_new_assignment_may_come_before_the_call_that_forgets_the_one_before(idle: Assignments) -> None:
    before = begin(idle, order_of())
    end(idle)
    name = begin(idle, order_of())
    idle.rest(before, WAIT_S)
    assert idle._assignment is not None
    assert idle._assignment.name == name
    end(idle)
    with pytest.raises(Unfit, match=f"{before} is over"):
        idle.begin(order_of(attempt=int(before.split("/")[1])).SerializeToString(), 0, 0.0)


def test_an_assignment_that_is_forgotten_is_not_begun_again(idle: Assignments) -> None:
    order = order_of()
    name = begin(idle, order)
    end(idle)
    idle.rest(name, 0)
    with pytest.raises(Unfit, match="is over"):
        idle.begin(order.SerializeToString(), 0, 0.0)


def test_a_busy_worker_takes_no_other_assignment(idle: Assignments) -> None:
    name = begin(idle, order_of())
    with pytest.raises(Unfit, match=f"busy with {name}"):
        idle.begin(order_of().SerializeToString(), 0, 0.0)


def test_no_worker_takes_an_assignment_of_another_owner(idle: Assignments) -> None:
    name = begin(idle, order_of(owner="ann"))
    end(idle)
    idle.rest(name, 0)
    with pytest.raises(Unfit, match="another owner"):
        idle.begin(order_of(owner="bob").SerializeToString(), 0, 0.0)
    assert idle.describe(1, "").owner == "ann"


def test_an_assignment_of_an_earlier_coordinator_is_not_taken(idle: Assignments) -> None:
    idle.describe(7, "")
    with pytest.raises(Unfit, match="of epoch 6, of an earlier coordinator than 7"):
        idle.begin(order_of(epoch=6).SerializeToString(), 0, 0.0)
    begin(idle, order_of(epoch=7))


def test_orders_for_an_earlier_assignment_touch_nothing(idle: Assignments) -> None:
    before = begin(idle, order_of())
    end(idle)
    idle.rest(before, 0)
    name = begin(idle, order_of())
    idle.form(before, 1, 1, 0, ["nowhere"], "")
    idle.stop(before, 1, keep=False)
    idle.dismiss(before, 1)
    assert idle.why_hung(before) is None
    assert idle.status(before, None) == Status()
    idle.rest(before, WAIT_S)
    current = idle._assignment
    assert current is not None
    assert (current.name, current.has_ended, current.membership.current.number) == (name, False, 0)
    assert current.reporter.wish().name == "GO_ON"


def test_orders_of_an_earlier_coordinator_touch_nothing(idle: Assignments) -> None:
    name = begin(idle, order_of(epoch=2))
    idle.form(name, 1, 1, 0, ["nowhere"], "")
    idle.dismiss(name, 1)
    current = idle._assignment
    assert current is not None
    assert (current.has_ended, current.membership.current.number) == (False, 0)
    idle.dismiss(name, 2)
    assert wait_for_status(idle, name, "has_ended").is_reusable


def test_news_may_be_asked_for_before_the_assignment_comes(idle: Assignments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "POLL_S", WAIT_S)
    order, told, asks = order_of(), [], threading.Event()
    real_current = idle._current

    def current(name: str) -> Assignment | None:
        asks.set()
        return real_current(name)

    monkeypatch.setattr(idle, "_current", current)
    asking = threading.Thread(target=lambda: told.append(idle.status(name_of(order, 3), None)))
    asking.start()
    assert asks.wait(WAIT_S)
    idle.begin(order.SerializeToString(), 3, 0.0)
    asking.join(WAIT_S)
    assert told, "it has not waited in vain"


def test_an_idle_worker_that_waits_is_woken_by_an_assignment(idle: Assignments) -> None:
    woken = threading.Event()
    waiting = threading.Thread(target=lambda: (idle.rest("", WAIT_S), woken.set()))  # type: ignore[func-returns-value]
    waiting.start()
    begin(idle, order_of())
    assert woken.wait(WAIT_S)
    waiting.join()


def test_a_worker_says_who_it_is(idle: Assignments) -> None:
    pid = assignments.os.getpid()
    assert idle.describe(1, "") == Description(ENGINE_VERSION, 1.0, 0.0, None, "node-1", pid)
    order = order_of()
    name = begin(idle, order, number=5)
    about = idle.describe(2, "127.0.0.1:2")
    assert StartGang.FromString(about.order_bytes).attempt == order.attempt
    assert (about.number, about.generation, about.owner, about.pid) == (5, 0, "ann", pid)
    assert about.address.startswith("127.0.0.1:")
    assert about.hardware.startswith("cpu ")
    assert len(about.data) == 64
    assert about.data == idle.status(name, None).data
    assert (about.has_ended, about.is_dismissed) == (False, False)
    end(idle)
    idle.rest(name, 0)
    assert idle.describe(2, "") == Description(ENGINE_VERSION, 1.0, 0.0, "ann", "node-1", pid)


def test_a_worker_says_which_gpus_it_holds(make_worker: Any) -> None:
    one, order = make_worker(gpus=2.0), order_of()
    held = ("2", "GPU-8f6c")
    assert one.rest("", 0).gpu_ids == held
    assert one.begin(order.SerializeToString(), 0, 0.0).gpu_ids == held
    assert one.describe(1, "").gpu_ids == held


def test_a_worker_says_that_it_was_let_go_until_its_assignment_is_forgotten(idle: Assignments) -> None:
    name = begin(idle, order_of())
    idle.dismiss(name, 1)
    assert idle.describe(2, "").is_dismissed
    assert wait_for_status(idle, name, "has_ended").was_dismissed
    about = idle.describe(2, "")
    assert (about.has_ended, about.is_dismissed) == (True, True)


def test_a_worker_that_has_stopped_with_all_others_was_not_let_go(
    idle: Assignments, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = begin(idle, order_of())
    current = idle._assignment
    assert current is not None
    monkeypatch.setattr(current.reporter, "flush", lambda: None)  # there is no coordinator
    idle.stop(name, 1, keep=False)
    idle.form(name, 1, 1, 0, [current.address], "")
    assert not wait_for_status(idle, name, "has_ended").was_dismissed
    assert not idle.describe(2, "").is_dismissed


def test_a_worker_of_which_something_is_left_is_not_used_again(idle: Assignments, slate: PlayedSlate) -> None:
    slate.left = ["thread lingering"]
    begin(idle, order_of())
    assert not end(idle).is_reusable


def test_a_worker_that_cannot_be_cleared_away_says_that_it_has_ended(
    idle: Assignments, slate: PlayedSlate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[str]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(slate, "put_back", fail)
    name = begin(idle, order_of())
    idle.dismiss(name, 1)
    assert not wait_for_status(idle, name, "has_ended").is_reusable


def test_a_worker_whose_job_has_failed_is_not_used_again(idle: Assignments) -> None:
    order = order_of()
    order.spec.training.batch_size = 1000
    name = begin_only(idle, order)
    told = wait_for_status(idle, name, "has_ended")
    assert told.error_bytes
    assert not told.is_reusable


def begin_only(one: Assignments, order: StartGang) -> str:
    one.begin(order.SerializeToString(), 0, 0.0)
    return name_of(order, 0)


@pytest.mark.parametrize(("without_data_bytes", "is_reusable"), [(900, True), (1100, False)])
def test_a_worker_that_takes_too_much_memory_gives_up_its_data_first(
    make_worker: Any, monkeypatch: pytest.MonkeyPatch, without_data_bytes: int, is_reusable: bool
) -> None:
    large = make_worker(LauncherOptions(data_cache_bytes=1 << 20, warm_memory_bytes=1000))
    monkeypatch.setattr(assignments, "memory_bytes", lambda: without_data_bytes + large._data.size_bytes)
    begin(large, order_of())
    assert large._data.size_bytes == 160
    told = end(large)
    assert (told.is_reusable, told.memory_bytes) == (is_reusable, without_data_bytes)
    assert large._data.size_bytes == 0


def test_a_worker_within_its_limit_keeps_its_data(make_worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_worker(LauncherOptions(data_cache_bytes=1 << 20, warm_memory_bytes=1000))
    monkeypatch.setattr(assignments, "memory_bytes", lambda: 1000)
    begin(small, order_of())
    assert end(small).is_reusable
    assert small._data.size_bytes == 160


def test_training_waits_for_a_warm_up_that_has_begun(idle: Assignments, monkeypatch: pytest.MonkeyPatch) -> None:
    warms_up, may_go_on = threading.Event(), threading.Event()

    def train_once(gpus: float) -> None:
        warms_up.set()
        assert may_go_on.wait(WAIT_S)

    monkeypatch.setattr(assignments, "train_once", train_once)
    warming = threading.Thread(target=idle.warm_up)
    warming.start()
    assert warms_up.wait(WAIT_S)
    order = order_of()
    order.spec.recovery.hang_timeout_s = 0.001
    name = begin_only(idle, order)
    assert not idle.status(name, Status()).is_prepared
    assert "was waiting for the end of the warm-up" in (idle.why_hung(name) or "")
    may_go_on.set()
    warming.join()
    wait_for_status(idle, name, "is_prepared")


def test_a_worker_with_an_assignment_is_not_warmed_up(idle: Assignments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "train_once", lambda gpus: pytest.fail("it trains already"))
    begin(idle, order_of())
    idle.warm_up()


def soon_orphaned() -> Assignments:
    patch = pytest.MonkeyPatch()
    patch.setattr(ray, "get_runtime_context", RayContext)
    patch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    patch.setattr(assignments, "ORPHANED_AFTER_S", 0.2)
    return Assignments(ROOMY, 1.0, 0.0)


def live_alone(asked: bool) -> None:
    alone = soon_orphaned()
    if asked:
        alone.rest("", 0)
    threading.Event().wait()


@pytest.mark.parametrize("asked", [False, True])
def test_an_idle_worker_that_nobody_asks_for_ends_itself(asked: bool) -> None:
    with pytest.raises(AssertionError, match="it died"):
        in_a_fresh_process(live_alone, asked)


def work_alone() -> bool:
    alone = soon_orphaned()
    timer = alone._orphaned
    begin(alone, order_of())
    timer.join()
    return alone._assignment is not None


def test_a_working_one_does_not() -> None:
    assert in_a_fresh_process(work_alone)
