"""Reports of rank 0 over a real connection to a scripted coordinator."""

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from lockstep.v1.internal_service_pb2 import ReportProgressRequest, ReportProgressResponse, StartGang
from lockstep.v1.internal_service_pb2_grpc import InternalServiceServicer, add_InternalServiceServicer_to_server
from lockstep.workers.actor.reporter import Reporter
from lockstep.workers.actor.watchdog import Watchdog
from lockstep.workers.engine import PeerLost, Point, Progress, Result, Wish
from lockstep.workers.engine.state.checkpoint import Checkpoint, File

ORDER = StartGang(job_id="job-1", attempt=2, attempt_token="token")


class Coordinator(InternalServiceServicer):
    """Takes reports, unless `refuse` gives a status for one."""

    def __init__(self) -> None:
        self.taken: list[ReportProgressRequest] = []
        self.refuse: Callable[[ReportProgressRequest], grpc.StatusCode | None] = lambda report: None
        self.changed = threading.Condition()

    def ReportProgress(self, request: ReportProgressRequest, context: grpc.ServicerContext) -> ReportProgressResponse:
        assert ("lockstep-attempt-token", "token") in [(key, value) for key, value in context.invocation_metadata()]
        code = self.refuse(request)
        if code is not None:
            context.abort(code, "no")
        with self.changed:
            self.taken.append(request)
            self.changed.notify_all()
        return ReportProgressResponse(acknowledged_sequence=request.sequence)

    def steps(self) -> list[int]:
        return [point.step for report in self.taken for point in report.points]

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(is_so, 10), self.taken


@pytest.fixture
def coordinator() -> Iterator[tuple[Coordinator, str]]:
    server = grpc.server(ThreadPoolExecutor(4))
    servicer = Coordinator()
    add_InternalServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def reporter(coordinator: tuple[Coordinator, str]) -> Iterator[Reporter]:
    order = StartGang()
    order.CopyFrom(ORDER)
    order.coordinator_address = coordinator[1]
    reporter = Reporter(order, Watchdog(30))
    yield reporter
    reporter.close()


def progress(reporter: Reporter, step: int) -> None:
    reporter.progressed(Progress(step, 100, step / 10), [Point("train_loss", step, step / 10, 1.0 / step)])


def test_rank_0_reports_each_point_once_and_in_order(coordinator: tuple[Coordinator, str], reporter: Reporter) -> None:
    reporter.lead(1, leads=True)
    for step in range(1, 200):
        progress(reporter, step)
    reporter.finished(Result("digest", {"train_loss": 0.5}), lambda: None)
    assert coordinator[0].steps() == list(range(1, 200))
    assert coordinator[0].taken[-1].result.weights_digest == "digest"
    assert [report.sequence for report in coordinator[0].taken] == list(range(1, len(coordinator[0].taken) + 1))
    assert reporter.acknowledged_step() == 199
    assert reporter.unacknowledged() == []


def test_another_rank_keeps_points_until_they_are_stored_and_sends_them_when_it_is_rank_0(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    reporter.lead(1, leads=False)
    for step in range(1, 21):
        progress(reporter, step)
    reporter.noted("said by rank 0 for all")
    reporter.acknowledge(8)
    assert coordinator[0].taken == []
    reporter.lead(2, leads=True)
    reporter.flush()
    assert coordinator[0].steps() == list(range(9, 21))
    assert {report.generation for report in coordinator[0].taken} == {2}
    assert not any(report.notes for report in coordinator[0].taken)


def test_a_coordinator_that_is_away_gets_everything_when_it_is_back(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    tries: list[int] = []

    def away(report: ReportProgressRequest) -> grpc.StatusCode | None:
        tries.append(report.sequence)
        return grpc.StatusCode.UNAVAILABLE if len(tries) < 3 else None

    coordinator[0].refuse = away
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    reporter.flush()
    assert coordinator[0].steps() == [1]
    assert tries == [1, 1, 1], "a repetition keeps its number"


def test_a_report_of_an_earlier_generation_that_is_refused_is_sent_again_in_the_new_one(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    def fenced(report: ReportProgressRequest) -> grpc.StatusCode | None:
        if report.generation == 1:
            reporter.lead(2, leads=True)
            return grpc.StatusCode.PERMISSION_DENIED
        return None

    coordinator[0].refuse = fenced
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    coordinator[0].wait_for(lambda: coordinator[0].steps() == [1])
    assert (coordinator[0].taken[0].generation, coordinator[0].taken[0].sequence) == (2, 1)
    assert reporter.wish() is Wish.GO_ON


def test_a_worker_whose_attempt_is_over_stops(coordinator: tuple[Coordinator, str], reporter: Reporter) -> None:
    coordinator[0].refuse = lambda report: grpc.StatusCode.PERMISSION_DENIED
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    reporter.finished(Result("digest", {}), lambda: None)
    assert reporter.wish() is Wish.STOP


def test_a_worker_that_was_refused_in_an_earlier_generation_reports_again_when_it_leads_a_new_one(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    coordinator[0].refuse = lambda report: grpc.StatusCode.PERMISSION_DENIED if report.generation < 3 else None
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    reporter.flush()
    assert reporter.wish() is Wish.STOP
    reporter.lead(3, leads=True)
    assert reporter.wish() is Wish.GO_ON
    reporter.flush()
    assert coordinator[0].steps() == [1]


def test_a_report_that_can_never_be_taken_fails_the_worker(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    coordinator[0].refuse = lambda report: grpc.StatusCode.INVALID_ARGUMENT
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    with pytest.raises(grpc.RpcError):
        reporter.finished(Result("digest", {}), lambda: None)


def test_whoever_waits_for_the_result_to_arrive_hears_of_a_new_generation(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    is_away = [True]
    coordinator[0].refuse = lambda report: grpc.StatusCode.UNAVAILABLE if is_away[0] else None
    reporter.lead(1, leads=True)

    def look() -> None:
        if is_away[0]:
            raise PeerLost("generation 1 of the workers has ended")

    with pytest.raises(PeerLost):
        reporter.finished(Result("digest", {}), look)
    is_away[0] = False
    reporter.lead(2, leads=True)
    reporter.finished(Result("digest", {}), look)
    assert coordinator[0].taken[-1].result.weights_digest == "digest"


def test_the_first_step_of_each_generation_is_passed_on_by_every_rank() -> None:
    steps: list[int] = []
    reporter = Reporter(ORDER, Watchdog(30), lambda: steps.append(1))
    reporter.lead(1, leads=False)
    for pause_s in (math.nan, 0.0123):
        reporter.healed(pause_s)
    reporter.close()
    assert len(steps) == 2


def test_only_healing_counts_as_a_heal(coordinator: tuple[Coordinator, str], reporter: Reporter) -> None:
    reporter.lead(1, leads=True)
    for words in ("healed", "grown"):
        reporter.pauses(words)
        reporter.healed(0.0123)
    reporter.flush()
    notes = [note for report in coordinator[0].taken for note in report.notes]
    assert notes == ["healed after a pause of 12 ms", "grown after a pause of 12 ms"]
    assert sum(report.heals for report in coordinator[0].taken) == 1


def told(coordinator: Coordinator) -> tuple[list[str], int]:
    notes = [note for report in coordinator.taken for note in report.notes]
    return notes, sum(report.heals for report in coordinator.taken)


def test_changes_that_follow_each_other_before_a_step_are_one_pause_and_all_are_named(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    reporter.lead(1, leads=True)
    for words in ("healed", "healed", "grown"):
        reporter.pauses(words)
    reporter.healed(0.0123)
    reporter.healed(1.0)
    reporter.flush()
    assert told(coordinator[0]) == (["healed and grown after a pause of 12 ms"], 1)


def test_a_change_before_this_rank_took_a_step_is_no_pause(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    reporter.lead(1, leads=True)
    reporter.pauses("grown")
    reporter.healed(math.nan)
    reporter.pauses("healed")
    reporter.healed(0.0123)
    reporter.flush()
    assert told(coordinator[0]) == (["healed after a pause of 12 ms"], 1)


def test_a_report_whose_answer_was_lost_keeps_its_number_in_a_new_generation(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    numbers: list[tuple[int, int]] = []

    def lose_the_answer(report: ReportProgressRequest) -> grpc.StatusCode | None:
        numbers.append((report.generation, report.sequence))
        if len(numbers) > 1:
            return None
        reporter.lead(2, leads=True)
        return grpc.StatusCode.UNAVAILABLE

    coordinator[0].refuse = lose_the_answer
    reporter.lead(1, leads=True)
    reporter.pauses("healed")
    reporter.healed(0.0123)
    reporter.flush()
    progress(reporter, 1)
    reporter.flush()
    assert numbers == [(1, 1), (1, 1), (2, 1)]


def kept(*steps: int) -> list[Checkpoint]:
    files = (File("model.safetensors", 5, "f" * 64),)
    return [Checkpoint(step, f"file:///c/{step}", 1e9 + step, "w", files) for step in steps]


def test_the_checkpoints_are_told_whole_and_only_by_rank_0(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    reporter.lead(1, leads=False)
    reporter.checkpointed(kept(1))
    reporter.lead(2, leads=True)
    for steps in ((200, 100), ()):
        reporter.checkpointed(kept(*steps))
        reporter.flush()
    told = [report.kept_checkpoints.checkpoints for report in coordinator[0].taken]
    assert [[checkpoint.step for checkpoint in checkpoints] for checkpoints in told] == [[200, 100], []]
    assert all(report.HasField("kept_checkpoints") for report in coordinator[0].taken)
    assert told[0][0].create_time.ToMicroseconds() == (10**9 + 200) * 10**6
    assert [file.name for file in told[0][0].files] == ["model.safetensors"]


def test_checkpoints_of_a_rank_that_leads_no_more_are_not_told_when_it_leads_again(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    tried, is_back = threading.Event(), threading.Event()

    def away(report: ReportProgressRequest) -> grpc.StatusCode | None:
        tried.set()
        return None if is_back.is_set() else grpc.StatusCode.UNAVAILABLE

    coordinator[0].refuse = away
    reporter.lead(1, leads=True)
    progress(reporter, 1)
    assert tried.wait(10)
    reporter.checkpointed(kept(100))
    reporter.lead(2, leads=False)
    reporter.lead(3, leads=True)
    is_back.set()
    reporter.flush()
    assert coordinator[0].steps() == [1]
    assert not any(report.HasField("kept_checkpoints") for report in coordinator[0].taken)


def test_a_stop_that_was_refused_is_followed_no_more_and_one_that_may_not_be_refused_is(
    coordinator: tuple[Coordinator, str],
) -> None:
    refused: list[tuple[int, str]] = []
    reporter = Reporter(ORDER, Watchdog(30), refused=lambda number, why: refused.append((number, why)))
    reporter.stop(keep=True, refusable=3)
    assert (reporter.wish(), reporter.refusable()) == (Wish.KEEP_AND_STOP, 3)
    reporter.refuse_stop(3, "the disk is full")
    assert (reporter.wish(), reporter.refusable()) == (Wish.GO_ON, 0)
    reporter.stop(keep=True, refusable=3)
    assert reporter.wish() is Wish.GO_ON, "it came late"
    reporter.stop(keep=True, refusable=5)
    reporter.stop(keep=False)
    reporter.refuse_stop(5, "the disk is full")
    assert (reporter.wish(), reporter.refusable()) == (Wish.STOP, 0)
    reporter.refuse_stop(6, "")
    assert refused == [(3, "the disk is full"), (5, "the disk is full")], "rank 0 tells it for all"
    reporter.close()


def test_the_first_report_of_an_attempt_that_goes_on_tells_the_step_it_goes_on_from(
    coordinator: tuple[Coordinator, str], reporter: Reporter
) -> None:
    reporter.lead(1, leads=True)
    reporter.noted("going on from the checkpoint of step 38")
    reporter.started(Progress(38, 100, 3.8), "cpu")
    for step in range(39, 45):
        progress(reporter, step)
    coordinator[0].wait_for(lambda: bool(coordinator[0].taken) and coordinator[0].taken[-1].progress.step == 44)
    told = [report.progress.step for report in coordinator[0].taken if report.progress.total_steps]
    assert (told[0], told[-1]) == (38, 44)
    assert coordinator[0].steps() == [*range(39, 45)]
