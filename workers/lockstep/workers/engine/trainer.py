"""Synchronous minibatch SGD whose result does not depend on the number of workers.

The argument why is in docs/design/one-curve.md.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lockstep.workers.engine.checkpoint import Checkpoints, Damaged, Writer, read_uri
from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import fix_arithmetic, hardware_class, seed_generators
from lockstep.workers.engine.digest import fingerprint, weights_digest
from lockstep.workers.engine.errors import DataError, EngineError, NonFiniteLoss, PeerLost, Stopped
from lockstep.workers.engine.flat import FlatModel
from lockstep.workers.engine.group import Group
from lockstep.workers.engine.listener import Listener, Phase, Result, Wish
from lockstep.workers.engine.metrics import Point, Progress, Sums, Window
from lockstep.workers.engine.module import Module, has_batch_statistics, materialise
from lockstep.workers.engine.order import EpochOrder, derive_seed
from lockstep.workers.engine.reduce import ShardSums, choose_exchange, padded
from lockstep.workers.engine.shards import Placement, part
from lockstep.workers.engine.state import StateMismatch, TrainState, put_weights

ENGINE_VERSION = "1"
"""Version of the arithmetic. It changes whenever the same spec and data would give other bits than before."""

# Slots behind the gradients in the exchanged row; each wish is counted.
LOSS, WEIGHT, CORRECT, STOP, KEEP, SLOTS = 0, 1, 2, 3, 4, 5
# Minibatches whose order is computed at once: enough to make the work per minibatch vanish.
ORDER_AHEAD = 64

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
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


@dataclass(frozen=True)
class Trainer:
    """Trains a module on data, alone or with other ranks, and gives the same bits either way.

    Every rank makes the same trainer, module and data and calls `fit` with its own place in the group.

    Args:
        max_epochs: passes over the training set; or
        max_steps: optimizer steps in all. Exactly one of the two.
        batch_size: examples of a global minibatch.
        shards: parts that each minibatch is cut into; at least as many as there are ranks.
        seed: seed of initial order, dropout and every other draw.
        gradient_clip_norm: upper bound on the global L2 norm of the gradient; None for none.
        log_every_steps: steps between two points of a training metric.
        evaluate_every_steps: steps between two validations; None for the end of each epoch.
        threads: CPU threads of one rank.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 32
    shards: int = 4
    seed: int = 0
    gradient_clip_norm: float | None = None
    log_every_steps: int = 50
    evaluate_every_steps: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if (self.max_epochs is None) == (self.max_steps is None):
            raise ValueError("set exactly one of max_epochs and max_steps")

    def fit(
        self,
        module: Module,
        data: DataModule,
        optimizer: OptimizerFactory,
        *,
        group: Group | None = None,
        regroup: Regroup | None = None,
        device: torch.device | str = "cpu",
        listener: Listener | None = None,
        origin: Origin | None = None,
    ) -> Result:
        """Train `module` in place.

        Args:
            module: made alike on every rank, with the generators seeded by `initialisation_seed`.
            data: loaded already, alike on every rank.
            optimizer: makes the optimizer over the one flat parameter.
            group: the ranks that train together; alone if not given.
            regroup: called when a rank was lost; without it that ends training.
            device: where this rank computes.
            listener: told of the progress.
            origin: checkpoints, to go on from and to write.

        Raises:
            DataError: the data, or the weights to start from, do not fit these settings.
            NonFiniteLoss: the loss left the finite numbers.
            PeerLost: a rank left, and there is no `regroup`.
            RanksDisagree: the ranks' parameters or hardware differ.
            Stopped: a listener of some rank wanted to stop.
        """
        fix_arithmetic(self.threads)
        run = _Run(self, module, data, optimizer, torch.device(device), listener or Listener(), origin or Origin())
        return run.train(group or Group(), regroup)


def initialisation_seed(seed: int) -> int:
    """Seed for the generators while a module is made."""
    return derive_seed(seed, "initialisation")


class _Run:
    """One call of `Trainer.fit` on one rank."""

    def __init__(
        self,
        trainer: Trainer,
        module: Module,
        data: DataModule,
        optimizer: OptimizerFactory,
        device: torch.device,
        listener: Listener,
        origin: Origin,
    ) -> None:
        self.config, self.data, self.device, self.listener, self.origin = trainer, data, device, listener, origin
        self.train_set, self.validation_set = data.train.to(device), data.validation.to(device)
        if trainer.batch_size > len(self.train_set):
            raise DataError(
                "training.batch_size",
                f"{trainer.batch_size} is more than the {len(self.train_set)} training examples; "
                f"allowed: 1 to {len(self.train_set)}",
            )
        self.steps_per_epoch = math.ceil(len(self.train_set) / trainer.batch_size)
        self.total_steps = trainer.max_steps or (trainer.max_epochs or 0) * self.steps_per_epoch

        self.module = module.to(device)
        seed_generators(derive_seed(trainer.seed, "materialise"), device)
        materialise(self.module, data.take(self.train_set, slice(0, 2))[0])
        self.model = FlatModel(self.module)
        self.has_accuracy = data.num_classes is not None
        self.fewest_examples = 2 if has_batch_statistics(module) else 1
        self.optimizer = optimizer([self.model.parameters])

        scalars_start = self.model.size + self.model.buffers_size
        self.buffer_part = slice(self.model.size, scalars_start)
        self.scalar_part = slice(scalars_start, scalars_start + SLOTS)

        self.position = Position()
        self.window = Window()
        self.gradient_norm = math.nan
        self.final_metrics: dict[str, float] = {}
        self.writer: Writer | None = None
        if origin.checkpoints is not None:
            self.writer = Writer(origin.checkpoints, listener.checkpointed, self.not_written)
        self.has_looked_back = False
        self.last_step_at = math.nan
        self.is_healing = False
        self._order: tuple[int, int, Tensor] | None = None

    def train(self, group: Group, regroup: Regroup | None) -> Result:
        """Take all steps, with one group after another until none is lost."""
        try:
            while True:
                try:
                    self.enter(group)
                    self.look_back()
                    self.catch_up()
                    return self.go_on()
                except PeerLost:
                    if regroup is None:
                        raise
                    self.is_healing = self.position.step > 0
                    group.leave()
                    self.listener.entered(Phase.JOIN, self.position.step)
                    group = regroup()
        finally:
            if self.writer is not None:
                self.writer.wait()

    def enter(self, group: Group) -> None:
        """Take this rank's place in a group."""
        self.group = group
        placement = Placement.deal(self.config.shards, group.world_size)
        self.my_shards = placement.owned[group.rank]
        width = padded(self.scalar_part.stop, group.world_size)
        self.sums = ShardSums(placement, group.rank, width, self.model.parameters.dtype, self.device)
        self.exchange = choose_exchange(placement, group, self.sums)
        self.model.point_gradients_at(self.sums.accumulator[: self.model.size])
        self.gradients_are_checked = False
        self.scalars = self.sums.accumulator[self.scalar_part].unbind()

    def look_back(self) -> None:
        """On rank 0 of a run that begins: go on from the newest checkpoint, or start from the given weights."""
        if self.group.rank != 0 or self.has_looked_back or self.position > Position():
            return
        if self.origin.checkpoints is not None:
            state = self.origin.checkpoints.newest(self.listener.noted)
            if state is not None:
                self.adopt(state, is_loaded=True)
                self.listener.noted(f"going on from the checkpoint of step {state.step}")
        if self.origin.init_from_uri and self.position == Position():
            try:
                put_weights(read_uri(self.origin.init_from_uri).model, self.module)
            except (Damaged, OSError, StateMismatch) as error:
                raise DataError(
                    "init_from", f"the weights in {self.origin.init_from_uri} do not fit: {error}"
                ) from error
            self.position = Position(is_loaded=True)
        self.has_looked_back = True

    def catch_up(self) -> None:
        """Bring every rank to where the one that is furthest ahead is."""
        self.listener.entered(Phase.HAND_OVER, self.position.step)
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
        hardware = hardware_class(self.device)
        self.group.agree("the hardware class", hardware)
        where = f"after step {self.position.step}" if self.position.step else "at the start"
        self.group.agree(f"the model {where}", weights_digest(self.module))
        self.listener.started(self.progress(self.position.step), hardware)
        try:
            self.settle()
            while self.position.step < self.total_steps:
                self.train_step(self.position.step + 1)
                self.settle()
        except Stopped as stopped:
            self.leave_state_behind(stopped)
            raise
        return self.finish()

    def finish(self) -> Result:
        """Agree on the result, and stay until it has arrived: whoever is left may have to tell it again."""
        self.listener.entered(Phase.FINISH, self.position.step)
        digest = weights_digest(self.module)
        self.group.agree("the final state of the model", digest)
        self.write_checkpoint(and_wait=True)
        result = Result(digest, self.final_metrics)
        self.listener.finished(result)
        self.group.agree("the end", digest)
        return result

    def leave_state_behind(self, stopped: Stopped) -> None:
        """Before a stop: write a checkpoint if one is wanted; everybody stays until it is written."""
        if stopped.is_kept:
            if self.position.step > 0:
                self.write_checkpoint(and_wait=True)
            self.group.agree("the stop", str(stopped.step))

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
        self.listener.entered(Phase.CHECKPOINT, self.position.step)
        self.writer.write(self.state())
        if and_wait:
            self.writer.wait()

    def not_written(self, step: int, error: Exception) -> None:
        """Tell that a checkpoint could not be written; training needs none to go on."""
        self.listener.noted(f"the checkpoint of step {step} could not be written: {error}; those before it are kept")

    def settle(self) -> None:
        """After a step: validate and report where it is due, and write a checkpoint."""
        step = self.position.step
        if self.position.is_settled:
            return
        metrics: dict[str, float] = {}
        timings: dict[str, float] = {}
        if self.is_logged(step):
            metrics, timings = self.training_metrics()
        if step == self.total_steps or step % (self.config.evaluate_every_steps or self.steps_per_epoch) == 0:
            metrics |= self.evaluate()
        if metrics:
            self.report(step, metrics, timings)
        if self.is_logged(step):
            self.window = Window()
        self.position = self.position._replace(is_settled=True)
        if step % self.origin.every_steps == 0 and step != self.total_steps:
            self.write_checkpoint()

    def train_step(self, step: int) -> None:
        """Take one synchronous SGD step on a global minibatch.

        The gradient is that of the mean loss over the minibatch: summed over its shards in tree order, divided by the
        weight of its losses.

        Args:
            step: number of the step, from 1.

        Raises:
            PeerLost: a rank left during the exchange; no parameter of this rank has changed.
            NonFiniteLoss: the loss is not finite; no parameter has changed.
            Stopped: some rank wants to stop; no parameter has changed.
        """
        began = time.perf_counter()
        wish = self.listener.wish()
        if not self.module.training:
            self.module.train()
        self.model.remember_buffers()
        try:
            epoch, position, examples, active_shards = self.minibatch(step)
            for shard in self.sums.each():
                self.listener.entered(Phase.COMPUTE, step)
                if shard < active_shards:
                    shard_range = part(examples, shard, active_shards)
                    inputs, targets = self.data.take(self.train_set, self.indices(epoch, position, shard_range))
                    self.model.restore_buffers()
                    seed_generators(derive_seed(self.config.seed, step, shard), self.device)
                    outputs = self.module(inputs)
                    losses = self.module.loss(outputs, targets)
                    loss = losses.sum()
                    loss.backward()  # type: ignore[no-untyped-call]
                    self.count(loss.detach(), losses, outputs.detach(), targets)
                if shard == self.my_shards.start and wish is not Wish.GO_ON:
                    self.scalars[STOP].add_(1.0)
                    self.scalars[KEEP].add_(float(wish is Wish.KEEP_AND_STOP))
            self.listener.entered(Phase.EXCHANGE, step)
            total = self.exchange.total()
            # The one wait for the device: it confirms the exchange before anything is done with what it brought.
            loss_sum, weight, correct, stops, keeps = total[self.scalar_part].tolist()
            self.group.check()
            if stops:
                raise Stopped(step - 1, is_kept=bool(keeps))
            if not math.isfinite(loss_sum):
                raise NonFiniteLoss(step, loss_sum)
        except EngineError:
            self.model.restore_buffers()
            raise
        self.listener.entered(Phase.UPDATE, step)
        self.apply(step, total, weight, active_shards)
        now = time.perf_counter()
        self.window.add(Sums(loss_sum, weight, correct), examples, now - began)
        self.position = Position(step, is_settled=False, is_loaded=self.position.is_loaded)
        if not self.gradients_are_checked:
            self.model.check_gradients_lie_in(self.sums.accumulator)
            self.gradients_are_checked = True
        if self.is_healing:
            self.listener.healed(now - self.last_step_at)
            self.is_healing = False
        self.last_step_at = now

    def apply(self, step: int, total: Tensor, weight: float, active_shards: int) -> None:
        """Update the parameters from the sums over all shards, (width,), in place of `total`."""
        gradient = total[: self.model.size]
        gradient.div_(weight)
        limit = self.config.gradient_clip_norm
        if limit is not None or self.is_logged(step):
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float64)
            if limit is not None:
                gradient.mul_((limit / norm).clamp(max=1.0).to(gradient.dtype))
            if self.is_logged(step):
                self.gradient_norm = norm.item()
        self.model.parameters.grad = gradient
        self.optimizer.step()
        self.model.apply_buffer_changes(total[self.buffer_part], active_shards)

    def count(self, loss: Tensor, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a shard's loss, weight, right answers and changes of buffers to the row that is exchanged."""
        self.scalars[LOSS].add_(loss)
        self.scalars[WEIGHT].add_(self.module.weight(losses, targets))
        correct = self.module.correct(outputs, targets)
        if correct is not None:
            self.scalars[CORRECT].add_(correct)
        self.model.add_buffer_changes(self.sums.accumulator[self.buffer_part])

    def minibatch(self, step: int) -> tuple[int, int, int, int]:
        """Epoch, first position in it, number of examples and number of shards with examples, of a minibatch."""
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        position = batch * self.config.batch_size
        examples = min(self.config.batch_size, len(self.train_set) - position)
        return epoch, position, examples, max(1, min(self.config.shards, examples // self.fewest_examples))

    def indices(self, epoch: int, position: int, shard_range: range) -> Tensor:
        """Examples of a shard of the minibatch at `position` of an epoch, int64, on the device."""
        ahead = ORDER_AHEAD * self.config.batch_size
        start = position // ahead * ahead
        if self._order is None or self._order[:2] != (epoch, start):
            order = EpochOrder(len(self.train_set), self.config.seed, epoch)
            self._order = epoch, start, order[start : min(start + ahead, order.size)].to(self.device)
        first = position - start
        return self._order[2][first + shard_range.start : first + shard_range.stop]

    def is_logged(self, step: int) -> bool:
        """Whether the training metrics get a point after this step."""
        return step == self.total_steps or step % self.config.log_every_steps == 0

    def training_metrics(self) -> tuple[dict[str, float], dict[str, float]]:
        """Result metrics and timings of the steps since the last time."""
        metrics = self.window.sums.means("train", self.has_accuracy)
        metrics["grad_norm"] = self.gradient_norm
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        return metrics, self.window.timings()

    def report(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Tell the listener, once it is sure that all ranks hold the same parameters."""
        self.listener.entered(Phase.REPORT, step)
        self.group.agree(f"the model after step {step}", fingerprint(self.model.parameters))
        arrived = self.group.gather(torch.tensor([self.listener.acknowledged_step()]))
        if self.group.rank != 0:
            self.listener.acknowledge(int(arrived[0]))
        self.final_metrics |= metrics
        progress = self.progress(step)
        points = [Point(name, step, progress.epoch, value) for name, value in metrics.items()]
        points += [Point(name, step, progress.epoch, value, is_timing=True) for name, value in timings.items()]
        self.listener.progressed(progress, points)

    def progress(self, step: int) -> Progress:
        """How far training is after a step."""
        return Progress(step, self.total_steps, step / self.steps_per_epoch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss and accuracy on the validation set.

        It is cut into shards like a minibatch; a shard is computed in batches of at most `batch_size`, whose sums are
        added in order in float64.
        """
        self.module.eval()
        table = torch.zeros(self.config.shards, 3, dtype=torch.float64)
        for shard in self.my_shards:
            table[shard] = self.evaluate_shard(part(len(self.validation_set), shard, self.config.shards))
        self.group.fill_in(table)
        return Sums.over(table.tolist()).means("val", self.has_accuracy)

    def evaluate_shard(self, examples: range) -> Tensor:
        """Sums of loss, weight and right answers over a range of the validation set, float64, (3,)."""
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        for start in range(examples.start, examples.stop, self.config.batch_size):
            self.listener.entered(Phase.EVALUATE, self.position.step)
            batch = slice(start, min(start + self.config.batch_size, examples.stop))
            inputs, targets = self.data.take(self.validation_set, batch)
            outputs = self.module(inputs)
            losses = self.module.loss(outputs, targets)
            total[LOSS] += losses.sum(dtype=torch.float64)
            total[WEIGHT] += self.module.weight(losses, targets)
            correct = self.module.correct(outputs, targets)
            if correct is not None:
                total[CORRECT] += correct
        return total.cpu()
