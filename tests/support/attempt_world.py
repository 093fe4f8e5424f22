"""A world of workers for an attempt that is a value: it does what is said, and sees that it may be said."""

from dataclasses import dataclass, field

from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import Status
from lockstep.workers.launcher.attempt.advance import Step, advance
from lockstep.workers.launcher.attempt.commands import (
    Command,
    Discard,
    Dismiss,
    Form,
    GiveBack,
    Kill,
    Log,
    Stop,
    Take,
    TellChanged,
    TellStarted,
    TellStopped,
)
from lockstep.workers.launcher.attempt.events import CameUp, Death, Died, Event, Hung, Taken, TimeIsUp, Told
from lockstep.workers.launcher.attempt.state import (
    Attempt,
    Coming,
    Ended,
    Failing,
    Finished,
    Finishing,
    Gathering,
    Leaving,
    Left,
    Ranked,
    Reading,
    Ready,
    Stopping,
    Training,
)

HARDWARE, DATA = "cpu AVX2", "0123456789abcdef"
LONGEST_END = 200
"""Events after which an attempt whose workers do what they are told must be over."""


@dataclass
class Worker:
    """A worker of the world.

    Attributes:
        number: its number.
        node_id: where it is.
        status: what it tells.
        is_up: it has answered.
        generation: the newest that it was told of.
        may_end: it was told to stop or to leave.
        is_dismissed: it was told to leave.
        is_killed: its process was ended.
    """

    number: int
    node_id: str
    status: Status = field(default_factory=Status)
    is_up: bool = False
    generation: int = 0
    may_end: bool = False
    is_dismissed: bool = False
    is_killed: bool = False

    @property
    def address(self) -> str:
        return f"address-{self.number}"


class World:
    """An attempt, its workers and what it has told the coordinator.

    Args:
        step: the attempt as it begins, and what has to be done then.
        workers: those that are there already.
        reuses: processes that are taken were there before.

    Attributes:
        attempt: as it stands.
        workers: the processes that are there, by number.
        now: the time.
        told: what the coordinator was told.
    """

    def __init__(self, step: Step, workers: tuple[Worker, ...] = (), *, reuses: bool = False, now: float = 0.0) -> None:
        self.workers = {worker.number: worker for worker in workers}
        self.now, self.reuses = now, reuses
        self.told: list[TellStarted | TellChanged | TellStopped] = []
        self._taken: list[Taken] = []
        self._ever = set(self.workers)
        self.generation = step[0].generation - any(isinstance(command, Form) for command in step[1])
        self._carry_out(*step)

    @property
    def has_ended(self) -> bool:
        return self.attempt.has_ended

    def happens(self, event: Event) -> None:
        """Have something happen."""
        if isinstance(event, Died):
            del self.workers[event.first.number]
        elif isinstance(event, Told):
            self.workers[event.number].status = event.status
        elif isinstance(event, CameUp):
            self.workers[event.number].is_up = True
        self._carry_out(*advance(self.attempt, event, self.now))
        if isinstance(event, TimeIsUp):
            deadline = self.attempt.deadline
            assert deadline is None or deadline > self.now, "it would be woken again and again"

    def _carry_out(self, attempt: Attempt, commands: list[Command]) -> None:
        self.attempt = attempt
        for place, command in enumerate(commands):
            assert not self._has_stopped(), "nothing is done after the end"
            self._do(command)
            assert place == len(commands) - 1 or not isinstance(command, TellStopped)
        self.check()
        while self._taken:
            self._carry_out(*advance(self.attempt, self._taken.pop(0), self.now))

    def _has_stopped(self) -> bool:
        return any(isinstance(fact, TellStopped) for fact in self.told)

    def _do(self, command: Command) -> None:
        match command:
            case Take(number, node_id, is_fresh):
                assert number not in self._ever, "a number is given once"
                self._ever.add(number)
                self.workers[number] = Worker(number, node_id)
                self._taken.append(Taken(number, self.reuses and not is_fresh, is_warm=True))
            case Form(generation, numbers, addresses, _):
                self._form(generation, numbers, addresses)
            case Stop(numbers):
                for number in numbers:
                    self.workers[number].may_end = True
            case Dismiss(number):
                self.workers[number].may_end = self.workers[number].is_dismissed = True
            case Kill(number):
                self.workers[number].is_killed = True
            case Discard(number):
                self.workers.pop(number, None)  # it may be dead
            case GiveBack(number):
                assert self.workers.pop(number).status.is_reusable
            case TellStarted() | TellChanged() | TellStopped():
                self.told.append(command)
            case Log():
                pass

    def _form(self, generation: int, numbers: tuple[int, ...], addresses: tuple[str, ...]) -> None:
        assert generation > self.generation, "each generation is told of once"
        assert len(numbers) == len(set(numbers)) == len(addresses) > 0
        self.generation = generation
        for number, address in zip(numbers, addresses, strict=True):
            worker = self.workers[number]
            assert worker.is_up and worker.address == address and not worker.status.has_ended
            assert not worker.is_dismissed, "whoever was told to leave gets no rank"
            worker.generation = generation

    # What holds after every event.

    def check(self) -> None:
        """See that the attempt contradicts neither itself nor the world."""
        check(self.attempt)
        assert {member.number for member in self.attempt.members} >= set(self.workers), "nobody is left behind"
        assert not self.has_ended or not self.workers
        for member in self.attempt.members:
            worker = self.workers.get(member.number)
            if worker is None or isinstance(member.stage, Finished):
                continue
            assert worker.is_killed == (member.killed_because is not None)
            is_behind = 0 < worker.generation < self.generation and not isinstance(self.attempt.state, Failing)
            if is_behind and self.attempt.peer_losses.since is None:
                assert worker.may_end or worker.status.is_done, "two generations are at work at once"

    # How it may end.

    def obey(self) -> None:
        """Have everybody do what is to be done, until the attempt is over."""
        for _ in range(LONGEST_END):
            if self.has_ended:
                return
            self.happens(self._next_of_the_obedient())
        raise AssertionError(self.attempt)

    def _next_of_the_obedient(self) -> Event:
        for worker in self.workers.values():
            if worker.is_killed:
                return death(worker)
            member = self.attempt.member(worker.number)
            assert member is not None
            if not worker.is_up:
                return CameUp(worker.number, worker.address)
            if not worker.status.is_prepared:
                return prepared(worker)
        ranked = [worker for worker in self.workers.values() if worker.generation == self.generation]
        leaving = [worker for worker in self.workers.values() if worker.may_end]
        if self.attempt.peer_losses.since is not None or not (leaving or ranked):
            return self._deadline()
        worker = (leaving or ranked)[0]
        return ended(worker, was_dismissed=worker.is_dismissed)

    def fall_silent(self) -> None:
        """Have nobody say a word any more, so that only deadlines and the watch for hung ones end it."""
        for _ in range(LONGEST_END):
            if self.has_ended:
                return
            self.happens(self._next_of_the_silent())
        raise AssertionError(self.attempt)

    def _next_of_the_silent(self) -> Event:
        for worker in self.workers.values():
            if worker.is_killed:
                return death(worker)
        for member in self.attempt.staying:
            if not isinstance(member.stage, Coming):
                return Hung(member.number, f"worker {member.number} did not answer for 30 s")
        return self._deadline()

    def _deadline(self) -> Event:
        assert self.attempt.deadline is not None, "it waits for nobody"
        self.now = max(self.now, self.attempt.deadline)
        return TimeIsUp()


def check(attempt: Attempt) -> None:
    """See that an attempt does not contradict itself."""
    state, members, generation = attempt.state, attempt.members, attempt.generation
    numbers = [member.number for member in members]
    assert numbers == sorted(set(numbers)) and all(number < attempt.created for number in numbers)
    assert isinstance(state, Ended) == (not members), "it waits for somebody until it has ended"
    assert not isinstance(state, Gathering) or generation == 0
    assert not isinstance(state, Training | Finishing) or generation > 0
    assert attempt.peer_losses.since is None or isinstance(state, Training | Stopping)
    for member in attempt.staying:
        assert isinstance(member.stage, Coming) == (not member.address)
        assert not isinstance(state, Finishing | Failing), "all are told to leave"
        assert not isinstance(member.stage, Ready) or _may_wait(attempt)
    for member in members:
        if isinstance(member.stage, Leaving):
            is_watched = isinstance(state, Finishing | Failing | Stopping) or member.killed_because is not None
            assert is_watched or member.stage.kill_by is not None
            all_leave = state.failures or state.left is not Left.NONE if isinstance(state, Stopping) else is_watched
            assert member.stage.is_surplus or all_leave
        if isinstance(member.stage, Ranked):
            assert 0 < member.stage.since <= generation
    ranks = [member.stage.rank for member in members if isinstance(member.stage, Ranked)]
    assert len(ranks) == len(set(ranks))
    if isinstance(state, Training) and not any(isinstance(member.stage, Finished) for member in members):
        assert sorted(ranks) == list(range(len(ranks)))


def _may_wait(attempt: Attempt) -> bool:
    """Whether one that is ready has somebody to wait for: another one that comes, or its deadline."""
    comes = any(isinstance(member.stage, Coming | Reading | Finished) for member in attempt.staying)
    return isinstance(attempt.state, Stopping) or (isinstance(attempt.state, Gathering) and comes)


# What workers say.


def prepared(worker: Worker, hardware: str = HARDWARE, data: str = DATA) -> Told:
    """It has read the data."""
    return Told(worker.number, worker.status._replace(is_prepared=True, hardware=hardware, data=data))


def ended(worker: Worker, error: JobError | None = None, *, was_dismissed: bool = False) -> Told:
    """It trains no more."""
    status = worker.status._replace(
        has_ended=True,
        error_bytes=b"" if error is None else error.SerializeToString(),
        is_reusable=error is None,
        was_dismissed=was_dismissed and error is None,
        has_lost_peer=error is not None and error.reason == "WORKER_LOST",
    )
    return Told(worker.number, status)


def death(worker: Worker, *others: Worker, is_with_node: bool = False) -> Died:
    """Its process is gone; so are those of others."""
    first, *rest = (
        Death(gone.number, JobError(reason="WORKER_LOST", message=f"worker {gone.number} {FATE}"), is_with_node)
        for gone in (worker, *others)
    )
    return Died(first, tuple(rest))


FATE = "died: its process was killed or crashed"
