"""From step to step, through the deaths of ranks, from checkpoint to checkpoint."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from lockstep.contract.facts import Phase
from lockstep.workers.engine.audit.agreement import agree_on_arithmetic, agree_on_data, agree_on_model
from lockstep.workers.engine.audit.audit import ALWAYS, START, Audit
from lockstep.workers.engine.audit.fingerprint import Fingerprint
from lockstep.workers.engine.determinism import hardware_class
from lockstep.workers.engine.errors import (
    DataError,
    NonFiniteParameters,
    NonFiniteStep,
    Parameter,
    PeerLost,
    Stopped,
)
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.flops import flops_per_step
from lockstep.workers.engine.listener import Activity, Listener, Result
from lockstep.workers.engine.metrics import Point, Progress, Window
from lockstep.workers.engine.schedule import Schedule
from lockstep.workers.engine.state.checkpoint import Checkpoints, Damaged, NotOurs, read_weights
from lockstep.workers.engine.state.digest import weights_digest
from lockstep.workers.engine.state.state import StateMismatch, TrainState, first_non_finite, put_weights
from lockstep.workers.engine.state.writer import Writer
from lockstep.workers.engine.stepper import Stepper

SPARE_BYTES = 16 << 20
"""Room for the names and shapes in a file of weights."""
Regroup = Callable[[], Group]
"""Gives a rank that has lost a peer the group of the next generation; raises what shall end its training."""


@dataclass(frozen=True)
class Origin:
    """Where training starts from and leaves its state.

    Attributes:
        checkpoints: the job's own; training goes on from the newest whole one. None: none are read or written.
        every_steps: steps between two of them.
        init_from_uri: folder of the checkpoint whose weights a run starts from that has none of its own; "" for none.
    """

    checkpoints: Checkpoints | None = None
    every_steps: int = 1_000
    init_from_uri: str = ""


class Position(NamedTuple):
    """How far a rank is; of two ranks the greater one is ahead.

    Attributes:
        step: steps applied.
        is_settled: what follows the step, validation and metric points, is done.
        is_loaded: this state comes from a checkpoint, or from a rank that had it from there.
    """

    step: int = 0
    is_settled: bool = True
    is_loaded: bool = False


class Loop:
    """Training on one rank, from its first step here to its last.

    Args:
        stepper: takes the steps.
        schedule: when something is due.
        listener: told of the progress.
        origin: checkpoints, to go on from and to write.
        audit: when to look for what gives other bits on another number of ranks; see `Trainer`.
    """

    def __init__(self, stepper: Stepper, schedule: Schedule, listener: Listener, origin: Origin, audit: str) -> None:
        self.stepper, self.schedule, self.listener, self.origin = stepper, schedule, listener, origin
        self.module, self.optimizer, self.ledger = stepper.module, stepper.optimizer, stepper.ledger
        self.trainable = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        self.data, self.data_digest = stepper.data, stepper.data.digest()
        self.audit, self.is_audited = audit, False
        self.position = Position()
        self.window = Window()
        self.fingerprint = Fingerprint(stepper)
        self.gradient_norm = math.nan
        self.final_metrics: dict[str, float] = {}
        self.writer: Writer | None = None
        if origin.checkpoints is not None:
            origin.checkpoints.facts["data_digest"] = self.data_digest
            origin.checkpoints.preprocessing = self.data.preprocessing()
            origin.checkpoints.examples = self.data.described()
            rate = stepper.update.rate
            self.writer = Writer(origin.checkpoints, self.trainable, listener.checkpointed, self.not_written, rate)
        self.why_not_kept = ""
        self.has_looked_back = self.has_counted_flops = False
        self.last_step_at = math.nan
        self.is_first_step = False

    def run(self, group: Group | None, regroup: Regroup | None) -> Result:
        """Take all steps, with one group after another until none is lost."""
        self.listener.entered(Activity.JOIN, self.position.step)
        group = group or (regroup() if regroup is not None else Group())
        try:
            while True:
                try:
                    self.group = group
                    self.stepper.enter(group)
                    self.look_back()
                    self.catch_up()
                    return self.go_on()
                except PeerLost:
                    if regroup is None:
                        raise
                    self.ledger.lose_step()
                    self.stepper.leave()
                    group.leave()
                    self.listener.entered(Activity.JOIN, self.position.step)
                    group = regroup()
        finally:
            self.stepper.leave()
            if self.writer is not None:
                self.writer.wait()

    def look_back(self) -> None:
        """On rank 0 of a run that begins: go on from the newest checkpoint, or start from the given weights."""
        if self.group.rank != 0 or self.has_looked_back or self.position > Position():
            return
        self.listener.entered(Activity.LOAD, self.position.step)
        if self.origin.checkpoints is not None:
            self.resume(self.origin.checkpoints)
        if self.origin.init_from_uri and self.position == Position():
            try:
                put_weights(read_weights(self.origin.init_from_uri, self.most_bytes_of_weights()), self.module)
            except (Damaged, NotOurs, OSError, StateMismatch) as error:
                words = f"the weights in {self.origin.init_from_uri} cannot be used: {error}"
                raise DataError("init_from_uri", words) from error
            self.position = Position(is_loaded=True)
        self.has_looked_back = True

    def most_bytes_of_weights(self) -> int:
        """What a file with the weights of this model takes at most, in whichever precision they were written."""
        tensors: dict[str, torch.Tensor] = self.module.state_dict()
        return SPARE_BYTES + 2 * sum(tensor.nbytes for tensor in tensors.values())

    def resume(self, checkpoints: Checkpoints) -> None:
        """Go on from the newest checkpoint that can be used, if there is one."""
        try:
            steps = checkpoints.steps()
        except NotOurs as error:
            raise DataError("checkpoints", str(error)) from error
        except OSError as error:
            self.listener.noted(f"training starts from the beginning: its checkpoints cannot be looked at: {error}")
            return
        for step in steps:
            try:
                state, differences = checkpoints.read(step), checkpoints.differences(step)
                self.check_data(checkpoints, step)
                self.adopt(state, is_loaded=True)
            except (Damaged, OSError, StateMismatch) as error:
                self.listener.noted(f"the checkpoint of step {step} cannot be used: {error}")
            else:
                self.listener.noted(f"going on from the checkpoint of step {step}")
                for words in differences:
                    self.listener.noted(words)
                return

    def check_data(self, checkpoints: Checkpoints, step: int) -> None:
        """Go on with no other data than a checkpoint was trained on: no curve could go through both.

        Data that is computed, and not read from files, may come out otherwise on other hardware, which is told.
        """
        theirs, here = checkpoints.facts_of(step), hardware_class(self.stepper.device)
        digest = theirs.get("data_digest", self.data_digest)
        if digest != self.data_digest and (self.data.files() or theirs.get("hardware_class", here) == here):
            words = (
                f"the data is not that which the checkpoint of step {step} was trained on: the SHA-256 of its examples "
                f"is {self.data_digest} and was {digest}; restore the files as they were, or submit a new job with "
            )
            source = Parameter("init_from_uri")
            raise DataError(self.data.field, words, source, ", which begins with the weights of this checkpoint")

    def catch_up(self) -> None:
        """Bring every rank to where the one that is furthest ahead is."""
        self.listener.entered(Activity.HAND_OVER, self.position.step)
        table = self.group.gather(torch.tensor(self.position, dtype=torch.int64)).tolist()
        furthest = max(table)
        behind = [rank for rank, position in enumerate(table) if position != furthest]
        donor = table.index(furthest)
        if behind:
            data = self.state().to_bytes() if self.group.rank == donor else None
            received = self.group.hand_over(donor, behind, data)
            if received is not None:
                self.adopt(TrainState.from_bytes(received), is_loaded=False)

    def go_on(self) -> Result:
        """Take the steps that are left."""
        hardware = agree_on_arithmetic(self.group, self.stepper.device, self.stepper.settings)
        agree_on_data(self.group, self.data)
        agree_on_model(self.group, self.module, self.position.step)
        self.listener.started(self.progress(self.position.step), hardware)
        if self.writer is not None and self.group.rank == 0:
            self.writer.take_over()
        self.is_first_step = True
        self.settle()
        self.audit_newcomers()
        self.stepper.agree_on_buffers()
        while self.position.step < self.schedule.total_steps:
            try:
                self.take_step(self.position.step + 1)
            except Stopped as stopped:
                if self.refuses(stopped):
                    continue
                raise
            except NonFiniteStep as error:
                if self.keeps_what_was_before():
                    error.note_checkpoint()
                raise
            self.settle()
            if not self.has_counted_flops:  # not before the first points are told, for which people wait
                self.ledger.enter(Phase.IDLE)
                example = self.data.take(self.stepper.train_set, slice(0, 2))
                self.ledger.flops_per_step = flops_per_step(self.module, example, self.stepper.settings)
                self.has_counted_flops = True
        return self.finish()

    def audit_newcomers(self) -> None:
        """Have all ranks compute the same shards, where some process has not yet done so.

        Those of the first step, whichever comes next: so every process begins with the same work in the same order.
        """
        if self.audit != START or self.position.step == self.schedule.total_steps:
            return
        if not self.group.gather(torch.tensor([int(self.is_audited)])).all():
            Audit(self.stepper).run(at_step=self.position.step + 1, of_step=1)
            self.is_audited = True

    def finish(self) -> Result:
        """Agree on the result, and stay until it has arrived: whoever is left may have to tell it again."""
        self.listener.entered(Activity.FINISH, self.position.step)
        self.ledger.enter(Phase.CHECKPOINT)
        name = first_non_finite(self.trainable.items())
        if name is not None:
            raise NonFiniteParameters(self.position.step, name, self.stepper.update.rate)
        digest = weights_digest(self.module)
        self.group.agree("the final state of the model", digest)
        self.write_checkpoint(and_wait=True)
        result = Result(digest, self.final_metrics)
        self.ledger.enter(Phase.IDLE)
        self.listener.finished(result, self.group.check)
        self.group.agree("the end", digest)
        return result

    def refuses(self, stopped: Stopped) -> bool:
        """Before a stop: write a checkpoint if one is wanted; everybody stays until it is written.

        Returns:
            Whether training goes on, since that has failed and whoever wants the stop would rather have that.
        """
        self.ledger.leave_step()
        self.ledger.enter(Phase.IDLE)
        self.listener.progressed(self.progress(stopped.step), [])
        if not stopped.is_kept:
            return False
        self.why_not_kept = ""
        if self.position.step > 0:
            self.write_checkpoint(and_wait=True)
        self.group.agree("the stop", str(stopped.step))
        # Not every rank has had the order yet.
        table = self.group.gather(torch.tensor([int(bool(self.why_not_kept)), self.listener.refusable()]))
        is_refused, number = bool(table[0, 0]), int(table[:, 1].max())
        if not (is_refused and number):
            return False
        self.listener.refuse_stop(number, self.why_not_kept)
        return True

    def keeps_what_was_before(self) -> bool:
        """Before the end with a step that is not finite: write a checkpoint of the one before, for who wants to see it.

        Returns:
            Whether it is there, the same on every rank; everybody stays until it is written.
        """
        self.ledger.leave_step()
        self.ledger.enter(Phase.IDLE)
        step = self.position.step
        is_of_use = step > 0 and first_non_finite(self.trainable.items()) is None
        if is_of_use:
            self.write_checkpoint(and_wait=True)
        is_written = self.writer is not None and self.writer.written == step
        return is_of_use and bool(self.group.gather(torch.tensor([int(is_written)]))[0])

    def state(self) -> TrainState:
        """A copy of this rank's state."""
        notes: dict[str, Any] = {
            "position": list(self.position),
            "window": self.window.to_json(),
            "gradient_norm": self.gradient_norm,
            "final_metrics": self.final_metrics,
            "points": [list(point) for point in self.listener.unacknowledged()],
        }
        return TrainState.of(self.module, self.optimizer, self.position.step, notes)

    def adopt(self, state: TrainState, is_loaded: bool) -> None:
        """Take over a state from a checkpoint or from another rank, which may have loaded it itself."""
        state.put_into(self.module, self.optimizer)
        notes = state.notes
        step, is_settled, was_loaded = notes["position"]
        self.window = Window.from_json(notes["window"])
        self.gradient_norm = notes["gradient_norm"]
        self.final_metrics = dict(notes["final_metrics"])
        self.listener.take_over([Point(*point) for point in notes["points"]])
        self.position = Position(step, bool(is_settled), is_loaded or bool(was_loaded))

    def write_checkpoint(self, and_wait: bool = False) -> None:
        """On rank 0: write this state in another thread."""
        if self.writer is None or self.group.rank != 0:
            return
        self.listener.entered(Activity.CHECKPOINT, self.position.step)
        self.ledger.enter(Phase.CHECKPOINT)
        if and_wait:
            self.writer.wait(self.group.check)
            if self.writer.written == self.position.step:  # and then a worker died or came, so that all meet again
                return
        if self.writer.write(self.position.step, self.state, is_last=and_wait) and and_wait:
            self.writer.wait(self.group.check)
            self.writer.check()

    def not_written(self, step: int, error: Exception) -> None:
        """Tell that a checkpoint could not be written; training needs none to go on."""
        self.why_not_kept = f"the checkpoint of step {step} could not be written: {error}"
        self.listener.noted(f"{self.why_not_kept}; those before it are kept")

    def take_step(self, step: int) -> None:
        """Take one step and note what it brought; see `Stepper.take_step`."""
        if self.audit == ALWAYS:
            Audit(self.stepper).run(at_step=step, of_step=step)
        began = time.perf_counter()
        self.ledger.begin_step()
        taken = self.stepper.take_step(step, norm_is_wanted=self.schedule.is_logged(step))
        now = time.perf_counter()
        self.ledger.end_step(now - began, taken.examples)
        self.window.add(taken.sums, taken.examples, now - began)
        self.gradient_norm = taken.gradient_norm
        self.position = Position(step, is_settled=False, is_loaded=self.position.is_loaded)
        if self.is_first_step:
            self.listener.healed(now - self.last_step_at)
            self.is_first_step = False
        self.last_step_at = now

    def settle(self) -> None:
        """After a step: validate and report where it is due, and write a checkpoint."""
        step = self.position.step
        if self.writer is not None:
            self.writer.check()
        if self.position.is_settled:
            return
        metrics: dict[str, float] = {}
        timings: dict[str, float] = {}
        if self.schedule.is_logged(step):
            metrics, timings = self.training_metrics()
        if self.schedule.is_evaluated(step):
            metrics |= self.stepper.evaluate(step).means("val", self.stepper.has_accuracy)
        if metrics:
            self.report(step, metrics, timings)
        if self.schedule.is_logged(step):
            self.window = Window()
        self.position = self.position._replace(is_settled=True)
        if step % self.origin.every_steps == 0 and step != self.schedule.total_steps:
            self.write_checkpoint()

    def training_metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """Result metrics and timings of the steps since the last time."""
        metrics = self.window.sums.means("train", self.stepper.has_accuracy)
        metrics["grad_norm"] = self.gradient_norm
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        return metrics, self.window.timings()

    def report(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Tell the listener, once it is sure that all ranks hold the same parameters."""
        self.listener.entered(Activity.REPORT, step)
        self.ledger.enter(Phase.EXCHANGE)
        self.stepper.check_unseen()
        self.group.agree(f"the model after step {step}", self.fingerprint.now())
        arrived = self.group.gather(torch.tensor([self.listener.acknowledged_step()]))
        if self.group.rank != 0:
            self.listener.acknowledge(int(arrived[0]))
        self.ledger.enter(Phase.IDLE)
        self.final_metrics |= metrics
        progress = self.progress(step)
        points = [Point(name, step, progress.epoch, value) for name, value in metrics.items()]
        points += [Point(name, step, progress.epoch, value, is_timing=True) for name, value in timings.items()]
        self.listener.progressed(progress, points)

    def progress(self, step: int) -> Progress:
        """How far training is after a step."""
        return Progress(step, self.schedule.total_steps, step / self.stepper.steps_per_epoch)
