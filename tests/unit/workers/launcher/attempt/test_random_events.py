"""Whatever happens in whatever order: no worker is left behind, no two gangs are at work, nobody waits for nobody."""

from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import Status
from lockstep.workers.launcher.attempt.advance import begin, take_over
from lockstep.workers.launcher.attempt.events import (
    CameUp,
    Hung,
    LauncherFailed,
    ResizeAsked,
    StopAsked,
    TimeIsUp,
    Told,
)
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Bits,
    Finished,
    Gathering,
    Leaving,
    Member,
    Plan,
    Ranked,
    Reading,
    Ready,
    Stage,
    Training,
)
from tests.support.attempt_world import DATA, HARDWARE, Worker, World, death, ended, prepared

NODES = ("node-0", "node-1", "node-2")
WHICH = st.integers(0, 20)
NODE_IDS = st.lists(st.sampled_from(NODES), max_size=4)
ERRORS = st.sampled_from(["WORKER_LOST", "RANKS_DISAGREE", "NON_FINITE_LOSS", "DATA_INVALID"])


class Life(RuleBasedStateMachine):
    """The life of an attempt.

    Attributes:
        world: its workers.
        ordered_before: how many workers a launcher before may have given an order that has not come to all of them.
    """

    world: World
    ordered_before = 0

    def worker(self, which: int) -> Worker:
        return list(self.world.workers.values())[which % len(self.world.workers)]

    def living(self) -> bool:
        return bool(self.world.workers)

    @precondition(living)
    @rule(which=WHICH)
    def one_comes_up(self, which: int) -> None:
        worker = self.worker(which)
        if not worker.is_up and not worker.is_killed:
            self.world.happens(CameUp(worker.number, worker.address))

    @precondition(living)
    @rule(
        which=WHICH, hardware=st.sampled_from([HARDWARE] * 4 + ["cpu AVX512"]), data=st.sampled_from([DATA] * 4 + ["f"])
    )
    def one_has_read_the_data(self, which: int, hardware: str, data: str) -> None:
        if not self.worker(which).status.is_prepared:
            self.world.happens(prepared(self.worker(which), hardware, data))

    @rule()
    def all_come_and_read_the_data(self) -> None:
        for worker in list(self.world.workers.values()):
            if worker.number in self.world.workers and not worker.is_up and not worker.is_killed:
                self.world.happens(CameUp(worker.number, worker.address))
            if worker.number in self.world.workers and not worker.status.is_prepared:
                self.world.happens(prepared(worker))

    @precondition(living)
    @rule(which=WHICH)
    def one_ends_in_order(self, which: int) -> None:
        worker = self.worker(which)
        if worker.generation or worker.may_end:
            self.world.happens(ended(worker, was_dismissed=worker.is_dismissed))

    @precondition(living)
    @rule(which=WHICH)
    def one_is_done_and_takes_a_while_to_leave(self, which: int) -> None:
        worker = self.worker(which)
        if worker.generation and not worker.is_dismissed:
            self.world.happens(Told(worker.number, prepared(worker).status._replace(has_finished=True)))

    @precondition(living)
    @rule(which=WHICH)
    def one_ends_that_a_launcher_before_has_let_go(self, which: int) -> None:
        self.world.happens(ended(self.worker(which), was_dismissed=True))

    @precondition(living)
    @rule(which=WHICH, reason=ERRORS)
    def one_fails(self, which: int, reason: str) -> None:
        self.world.happens(ended(self.worker(which), JobError(reason=reason, message="it cannot go on")))

    @precondition(living)
    @rule(which=WHICH, with_next=st.booleans(), is_with_node=st.booleans())
    def one_dies(self, which: int, with_next: bool, is_with_node: bool) -> None:
        first, other = self.worker(which), self.worker(which + 1)
        others = [other] if with_next and other is not first else []
        self.world.happens(death(first, *others, is_with_node=is_with_node))
        for gone in others:
            if gone.number in self.world.workers:
                self.world.happens(death(gone))

    @precondition(living)
    @rule(which=WHICH)
    def one_hangs(self, which: int) -> None:
        worker = self.worker(which)
        if worker.is_up:
            self.world.happens(Hung(worker.number, f"worker {worker.number} did not answer for 30 s"))

    @precondition(living)
    @rule(which=WHICH, goes_on=st.booleans(), is_ahead=st.booleans())
    def one_loses_the_others(self, which: int, goes_on: bool, is_ahead: bool) -> None:
        worker = self.worker(which)
        if is_ahead and worker.number < self.ordered_before and not worker.is_dismissed:
            self.ordered_before = 0
            worker.generation = self.world.generation = self.world.generation + 1
        if worker.generation:
            lost = max(worker.generation, worker.status.lost_generation)
            went_on_in = worker.generation if goes_on else worker.status.went_on_in
            status = prepared(worker).status._replace(lost_generation=lost, went_on_in=went_on_in)
            self.world.happens(Told(worker.number, status))

    @precondition(living)
    @rule(which=WHICH, number=st.integers(1, 3))
    def one_refuses_to_stop(self, which: int, number: int) -> None:
        status = self.worker(which).status._replace(refused_stop=number, refused_because="the disk is full")
        self.world.happens(Told(self.worker(which).number, status))

    @rule(grace_s=st.sampled_from([0.0, 10.0, 60.0]), keep=st.booleans(), refusable=st.integers(0, 3))
    def it_shall_stop(self, grace_s: float, keep: bool, refusable: int) -> None:
        self.world.happens(StopAsked(grace_s, keep, refusable))

    @rule(revision=st.integers(1, 9), nodes=NODE_IDS)
    def it_shall_have_other_workers(self, revision: int, nodes: list[str]) -> None:
        self.world.happens(ResizeAsked(revision, tuple(nodes)))

    @rule(seconds=st.sampled_from([0.0, 1.0, 3.0, 11.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.happens(TimeIsUp())

    @rule()
    def the_deadline_comes(self) -> None:
        self.world.now = max(self.world.now, self.world.attempt.deadline or 0.0)
        self.world.happens(TimeIsUp())

    @precondition(living)
    @rule(rarely=st.integers(0, 9))
    def the_launcher_fails(self, rarely: int) -> None:
        if rarely == 9:
            self.world.happens(LauncherFailed("RuntimeError: Ray is away"))

    @rule(obeys=st.booleans())
    def it_comes_to_its_end(self, obeys: bool) -> None:
        """Not of this attempt, but of one like it: the attempt itself is a value."""
        copy = World((self.world.attempt, []), reuses=self.world.reuses, now=self.world.now)
        copy.told, copy.generation = list(self.world.told), self.world.generation
        copy.workers = {number: replace(worker) for number, worker in self.world.workers.items()}
        if obeys:
            copy.obey()
        else:
            copy.fall_silent()

    @invariant()
    def it_is_as_it_should_be(self) -> None:
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.it_comes_to_its_end(obeys=True)
            self.it_comes_to_its_end(obeys=False)


class Begun(Life):
    """An attempt that takes its workers itself."""

    @initialize(nodes=NODE_IDS, least=st.integers(1, 3), reuses=st.booleans(), trains=st.booleans())
    def begins(self, nodes: list[str], least: int, reuses: bool, trains: bool) -> None:
        self.world = World(begin(Plan(least, "builtin"), nodes, 0.0), reuses=reuses)
        if trains:
            self.all_come_and_read_the_data()


class TakenOver(Life):
    """An attempt whose workers were there before."""

    @initialize(
        found=st.lists(st.sampled_from(["ranked", "behind", "ready", "reading", "leaving", "finished"]), min_size=1),
        least=st.integers(1, 3),
        is_whole=st.booleans(),
    )
    def is_taken_over(self, found: list[str], least: int, is_whole: bool) -> None:
        generation = 2 if {"ranked", "behind"} & set(found) else 0
        is_whole = is_whole and set(found) <= {"ranked", "leaving"} and "ranked" in found
        members, workers = adopted(found, generation)
        state = Training() if generation else Gathering()
        attempt = Attempt(Plan(least), state, members, generation, created=len(members))
        self.world = World(take_over(attempt, 0.0, is_whole=is_whole), workers)
        self.ordered_before = len(workers)


def adopted(found: list[str], generation: int) -> tuple[tuple[Member, ...], tuple[Worker, ...]]:
    """What a launcher finds: workers that have told how far they are."""
    members, workers, bits = [], [], Bits(HARDWARE, DATA)
    for number, kind in enumerate(found):
        stages: dict[str, Stage] = {
            "ranked": Ranked(bits, found[:number].count("ranked"), 1),
            "behind": Ready(bits, 1),
            "ready": Ready(bits) if generation else Reading(),
            "reading": Reading(),
            "leaving": Leaving(is_surplus=True),
            "finished": Finished(was_ranked=False),
        }
        status = Status(is_prepared=kind in ("ranked", "behind"), hardware=HARDWARE, data=DATA)
        worker = Worker(number, NODES[number % 3], status, is_up=True)
        worker.generation = {"ranked": generation, "behind": 1}.get(kind, 0)
        worker.is_dismissed = worker.may_end = kind in ("leaving", "finished")
        workers.append(worker)
        members.append(Member(number, worker.node_id, stages[kind], worker.address))
    return tuple(members), tuple(workers)


BRIEF = settings(max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestBegun, TestTakenOver = Begun.TestCase, TakenOver.TestCase
TestBegun.settings = TestTakenOver.settings = BRIEF
