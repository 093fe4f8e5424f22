"""One attempt of a job: place its workers, let them meet, watch them, heal, resize, and leave nothing behind."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from lockstep.contract.wording import count, go_on
from lockstep.v1.internal_service_pb2 import (
    ConnectLauncherRequest,
    GangChanged,
    GangStarted,
    GangStopped,
    ResizeGang,
    StartGang,
    StopGang,
)
from lockstep.v1.job_pb2 import JobError
from lockstep.workers.calls import PLACEMENT_TIMEOUT_S
from lockstep.workers.engine import awake
from lockstep.workers.launcher.ending import Ending
from lockstep.workers.launcher.gang import (
    Event,
    Gang,
    Hung,
    Member,
    MemberDied,
    MemberStatus,
    MemberUp,
    PlacementFailed,
    ResizeAsked,
    StopAsked,
    changed,
    differs,
)
from lockstep.workers.launcher.losses import lost_with, what_happened
from lockstep.workers.launcher.peer_loss import HOPELESS, PeerLosses
from lockstep.workers.launcher.pool import Pool

LEAVE_GRACE_S = 10.0
"""How long a worker that is let go may take."""

log = structlog.get_logger()


class Attempt:
    """One attempt, run by a thread of its own that waits for events.

    Args:
        pool: where processes come from.
        order: what to run.
        tell: sends a fact to the coordinator.
        epoch: the coordinator's.
        adopted: workers of an earlier launcher to go on with; a new gang is started when there are none.
        generation: the newest generation that those were told of.
        is_whole: all members of that generation are among them.
    """

    def __init__(
        self,
        pool: Pool,
        order: StartGang,
        tell: Callable[[ConnectLauncherRequest], None],
        epoch: int,
        adopted: Sequence[Member] = (),
        generation: int = 0,
        is_whole: bool = True,
    ) -> None:
        self.order = order
        self._tell, self._epoch = tell, epoch
        self._gang = Gang(pool, order, epoch, generation)
        self._adopted, self._is_whole, self._revision = adopted, is_whole, 0
        self._min_workers = max(1, order.spec.resources.min_workers)
        self._ending = Ending()
        self._placed_by: float | None = None
        self._peer_losses = PeerLosses()
        self._thread = threading.Thread(target=self._run, name=f"{order.job_id}/{order.attempt}", daemon=True)
        self._log = log.bind(job_id=order.job_id, attempt=order.attempt)

    # Called by the launcher.

    def start(self) -> None:
        """Begin; returns at once."""
        for member in self._adopted:
            member.kill_by = awake.now() + LEAVE_GRACE_S if member.is_leaving else None
            self._gang.adopt(member)
        self._thread.start()

    def stop(self, order: StopGang) -> None:
        """Ask the gang to stop at a step boundary, and kill it after a grace."""
        self._gang.events.put(StopAsked(order.grace_s, order.keep, order.refusable))

    def resize(self, order: ResizeGang) -> None:
        """Give the gang other workers."""
        self._gang.events.put(ResizeAsked(order.revision, tuple(order.node_ids)))

    def is_alive(self) -> bool:
        """Whether something of the attempt is left."""
        return self._thread.is_alive()

    def inventory(self) -> GangChanged:
        """Who is in the gang now; only before `start`, for a gang that was taken over."""
        training = sum(member.is_training for member in self._adopted)
        return changed(self.order, self._revision, self._adopted, training if self._is_whole else 0)

    def _run(self) -> None:
        stopped = GangStopped(job_id=self.order.job_id, attempt=self.order.attempt)
        error: JobError | None = None
        try:
            self._begin()
            while self._gang.members:
                self._handle(self._gang.next_event(self._next_deadline()))
            error = self._ending.outcome()
        except PlacementFailed as failure:
            error = JobError(reason="PLACEMENT_FAILED", message=str(failure))
        except Exception as failure:
            self._log.exception("the attempt failed in the launcher")
            error = JobError(reason="INTERNAL", message=f"the launcher failed: {type(failure).__name__}: {failure}")
        finally:
            self._gang.remove_all()
        if error is not None:
            self._log.info("gang failed", reason=error.reason, message=error.message)
            stopped.error.CopyFrom(error)
        stopped.is_too_small = self._ending.is_too_small and error is None
        self._tell(ConnectLauncherRequest(gang_stopped=stopped))

    def _begin(self) -> None:
        """Bring up the first workers, or look after those that were taken over."""
        if not self._adopted:
            for node_id in self.order.node_ids:
                self._gang.add(node_id)
            self._placed_by = awake.now() + PLACEMENT_TIMEOUT_S
            return
        # Those that are left may be on their way out already, which only the launcher before knew.
        is_too_small = self._check_size("workers were lost before this launcher came", is_broken=not self._is_whole)
        if self._gang.generation and not self._is_whole and not is_too_small and self._gang.ready:
            self._form("healed")
            self._tell_changed(f"{go_on(len(self._gang.training))} after a change of the launcher")

    def _handle(self, event: Event | None) -> None:
        match event:
            case None:
                self._time_is_up()
            case MemberUp(member, address):
                member.address = address
                member.kill_by = None if not member.is_leaving else member.kill_by
                if all(other.is_up for other in self._gang.members):
                    self._placed_by = None
                    if self._gang.generation == 0:
                        started = GangStarted(job_id=self.order.job_id, attempt=self.order.attempt)
                        self._tell(ConnectLauncherRequest(gang_started=started))
                self._meet()
            case MemberStatus(member, status):
                self._take_status(member, status)
            case MemberDied(member, error) if not self._is_of_the_gang(member):
                self._lose_one_apart(member, error)
            case MemberDied():
                self._lose(event)
            case Hung(member, why):
                self._log.warning("a worker hangs", worker=member.number, why=why)
                member.hung_because = why
                self._gang.kill(member)  # its death is the next event
            case StopAsked():
                self._stop_all(event)
            case ResizeAsked():
                self._resize(event)

    def _take_status(self, member: Member, status: Any) -> None:
        error = JobError.FromString(status.error_bytes)
        joins = self._gang.generation > 0 and not member.is_prepared and not member.is_leaving
        if status.has_ended:
            self._gang.remove(member, status)
            if not status.error_bytes:
                if status.was_dismissed and not member.is_leaving:  # a launcher that died has told it
                    self._go_on_without([member], f"worker {member.number} was let go before this launcher came")
                    return
                if member.is_training and not member.is_leaving:
                    self._ending.has_left()
                    for joiner in [other for other in self._gang.members if other.rank is None]:
                        self._gang.remove(joiner)
                self._tell_changed("")
            elif member.is_surplus:
                self._tell_changed(f"worker {member.number}, which was let go, failed: {error.message}")
            elif joins:
                self._refuse(member, error.message)
            else:
                self._fail(error)
            return
        if status.is_prepared and not member.is_prepared:
            self._take_in(member, status)
        if self._ending.is_refused_by(status.refused_stop):
            self._tell_changed(status.refused_because, refuses_stop=True)
            self._meet()
        self._peer_losses.went_on(status.went_on_in)
        # An order of a launcher that died may have come to a worker after this one had asked it who it is.
        self._gang.generation = max(status.lost_generation, self._gang.generation)
        if 0 < status.lost_generation == self._gang.generation:
            self._peer_losses.begin()

    def _take_in(self, member: Member, status: Any) -> None:
        """A worker has read the data: let it meet the others, unless its bits would differ from theirs."""
        member.hardware, member.data = status.hardware, status.data
        if self._gang.generation and (why := self._gang.why_unlike(member)):
            self._refuse(member, why)
        else:
            member.is_prepared = True
            self._meet()

    def _refuse(self, member: Member, why: str) -> None:
        """Let go a worker that cannot train with the others, which go on without it."""
        self._gang.remove(member)
        self._log.warning("a worker is refused", worker=member.number, node_id=member.node_id, why=why)
        words = f"worker {member.number} cannot join, and none is tried on its node {member.node_id} again: {why}"
        self._tell_changed(words, refused=[member.node_id])
        self._check_size(words)

    def _refuse_who_differs(self) -> None:
        """Before the first generation: if the machines differ, go on with the largest class that is large enough."""
        classes = Counter(member.hardware for member in self._gang.staying)
        chosen, workers = classes.most_common(1)[0]
        if workers >= self._min_workers:  # else the ranks find it out and say so
            for member in [member for member in self._gang.staying if member.hardware != chosen]:
                self._refuse(member, differs(member.hardware, {chosen}))

    def _meet(self) -> None:
        """Let those who are prepared meet: at first all together, later whoever has come."""
        if self._ending.deadline is not None or self._ending.is_agreed:
            return  # they would interrupt those who write their last checkpoint
        ready = [member for member in self._gang.ready if member.is_up]
        if self._gang.generation == 0:
            if ready and ready == self._gang.staying:
                self._refuse_who_differs()
                self._form("")
                self._tell_changed("")
        elif any(not member.is_training for member in ready):
            self._form("grown")
            self._tell_changed(f"grown to {count(len(self._gang.training), 'worker')}")

    def _lose(self, died: MemberDied) -> None:
        """A worker is gone: go on without it and those that went with it, or end if nobody is left."""
        member, before = died.member, list(self._gang.members)
        others = self._gang.deaths_that_came()
        lost = [loss for loss in lost_with(died, before, others) if self._is_of_the_gang(loss.member)]
        for loss in lost:
            self._gang.remove(loss.member)
            self._log.info("a worker is lost", worker=loss.member.number, node_id=loss.member.node_id, why=loss.fate)
        what = what_happened(lost, before)
        if not self._gang.staying:
            message = f"{what}; no other worker was left"
            self._ending.errors.append(JobError(reason="WORKER_LOST", message=message, rank=member.number))
        else:
            self._go_on_without([loss.member for loss in lost], what)

    def _is_of_the_gang(self, member: Member) -> bool:
        """Whether a worker that is up shall stay and is not new in its process, while nobody was told to go."""
        is_fresh = member.process.is_reused and not member.is_prepared
        return member.is_up and not member.is_leaving and not is_fresh and self._ending.deadline is None

    def _lose_one_apart(self, member: Member, error: JobError) -> None:
        """One is gone that was about to leave, or to come."""
        self._gang.remove(member)
        if member.is_leaving or self._ending.deadline is not None:
            if not member.is_leaving:
                self._form("healed")
            self._tell_changed("")
            return
        what = member.hung_because or error.message
        self._log.info("a worker is lost", worker=member.number, node_id=member.node_id, why=what)
        if member.process.is_reused and not member.is_prepared:  # it may have died or hung long ago
            self._gang.add(member.node_id, fresh=True)
            self._placed_by = awake.now() + PLACEMENT_TIMEOUT_S
            if member.hung_because:
                self._tell_changed(f"{what}; a new process takes its place")
            return
        self._not_placed(what)

    def _go_on_without(self, members: Sequence[Member], what: str) -> None:
        is_broken = any(member.is_training for member in members)
        if self._check_size(what, is_broken=is_broken):
            return
        if self._gang.generation and is_broken:
            self._form("healed")
            self._tell_changed(f"{what}; {go_on(len(self._gang.training))}")
        else:
            self._tell_changed(what)
            self._meet()

    def _check_size(self, what: str, *, is_broken: bool = False) -> bool:
        """Whether too few workers are left or will come; then they write a checkpoint and leave.

        Args:
            what: what has happened.
            is_broken: a member of the newest generation is gone, so that the others need another one.
        """
        left = len(self._gang.staying)
        if left >= self._min_workers or self._ending.is_stopping:
            return False
        if self._gang.generation and is_broken:
            self._form("healed")
        self._tell_changed(
            f"{what}; {count(left, 'worker')} left, fewer than resources.min_workers ({self._min_workers}): "
            "the job writes a checkpoint and waits"
        )
        self._stop_all(self._ending.be_too_small(what))
        return True

    def _not_placed(self, why: str) -> None:
        """A worker did not come up: fatal for a gang that begins, unfortunate for one that grows."""
        if self._gang.generation == 0:
            raise PlacementFailed(f"a worker did not come up: {why}")
        self._tell_changed("")
        self._check_size(why)

    def _form(self, why: str) -> None:
        """Start the next generation with everyone who is prepared and stays."""
        self._peer_losses.end()
        self._gang.form(why)

    def _time_is_up(self) -> None:
        now = awake.now()
        if self._ending.deadline is not None and now >= self._ending.deadline:
            for member in list(self._gang.members):
                self._gang.kill(member)
                self._gang.remove(member)
        elif self._placed_by is not None and now >= self._placed_by:
            late = [member for member in self._gang.members if not member.is_up]
            self._placed_by = None
            if self._gang.generation == 0 and late:
                raise PlacementFailed(
                    f"{len(late)} of {count(len(self._gang.members), 'worker')} "
                    f"{'was' if len(late) == 1 else 'were'} not up after {PLACEMENT_TIMEOUT_S:.0f} s; "
                    "others on the cluster may hold what they need"
                )
            for member in late:
                self._gang.remove(member)
            self._tell_changed("")
            self._check_size("a worker did not come up")
        elif self._peer_losses.is_due(now):
            if self._peer_losses.is_hopeless():
                self._fail(JobError(reason="WORKER_LOST", message=HOPELESS))
            else:
                self._form("brought together again")
                self._tell_changed(self._peer_losses.words)
        for member in list(self._gang.members):
            if member.kill_by is not None and now >= member.kill_by:
                member.kill_by = None
                self._gang.kill(member)  # its death is an event

    def _next_deadline(self) -> float | None:
        times = [self._ending.deadline, self._placed_by, self._peer_losses.deadline]
        times += [member.kill_by for member in self._gang.members]
        return min((moment for moment in times if moment is not None), default=None)

    def _stop_all(self, asked: StopAsked) -> None:
        self._ending.stop(asked, has_trained=self._gang.generation > 0)
        for member in self._gang.members:
            self._gang.tell(member, "stop", self._epoch, asked.keep, asked.refusable)

    def _fail(self, error: JobError) -> None:
        """A worker could not go on for a reason that the others share: end all, once they have reported."""
        self._ending.fail(error)
        for member in self._gang.staying:
            member.is_leaving = True
            if error.reason != "RANKS_DISAGREE":  # there each rank tells its own
                self._gang.tell(member, "dismiss", self._epoch)

    def _resize(self, asked: ResizeAsked) -> None:
        """Take in workers on nodes that lack one, and let go those that are too many there."""
        self._revision = max(asked.revision, self._revision)
        if self._ending.is_stopping or self._ending.is_agreed or self._ending.errors:
            self._tell_changed("")  # each order is answered
            return
        wanted = list(asked.node_ids)
        leaving = []
        for member in self._gang.staying:
            if member.node_id in wanted:
                wanted.remove(member.node_id)
            else:
                leaving.append(member)
        for member in leaving:
            member.is_leaving = member.is_surplus = True
            member.kill_by = awake.now() + LEAVE_GRACE_S
        words = ""
        if any(member.is_training for member in leaving):
            self._form("shrunk")
            words = f"shrunk to {count(len(self._gang.training), 'worker')}"
        for member in leaving:
            self._gang.tell(member, "dismiss", self._epoch)
        for node_id in wanted:
            self._gang.add(node_id)
        if wanted:
            self._placed_by = awake.now() + PLACEMENT_TIMEOUT_S
        self._tell_changed(words)

    def _tell_changed(self, message: str, refused: Sequence[str] = (), *, refuses_stop: bool = False) -> None:
        fact = changed(self.order, self._revision, self._gang.members, len(self._gang.training), message)
        fact.MergeFrom(GangChanged(refused_node_ids=refused, refuses_stop=refuses_stop))
        self._tell(ConnectLauncherRequest(gang_changed=fact))
