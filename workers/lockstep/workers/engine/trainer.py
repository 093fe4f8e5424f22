"""Synchronous minibatch SGD whose result does not depend on the number of workers.

The argument why is in docs/design/one-curve.md.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import fix_arithmetic, hardware_class, seed_generators
from lockstep.workers.engine.digest import fingerprint, weights_digest
from lockstep.workers.engine.errors import DataError, NonFiniteLoss, Stopped
from lockstep.workers.engine.flat import FlatModel
from lockstep.workers.engine.group import Group
from lockstep.workers.engine.metrics import Point, Progress, Sums, Window
from lockstep.workers.engine.module import Module, has_batch_statistics, materialise
from lockstep.workers.engine.order import EpochOrder, derive_seed
from lockstep.workers.engine.reduce import ShardSums, choose_exchange, padded
from lockstep.workers.engine.shards import Placement, part

ENGINE_VERSION = "1"
"""Version of the arithmetic. It changes whenever the same spec and data would give other bits than before."""

# Slots behind the gradients in the exchanged row.
LOSS, WEIGHT, CORRECT, STOP, SLOTS = 0, 1, 2, 3, 4
# Minibatches whose order is computed at once: enough to make the work per minibatch vanish.
ORDER_AHEAD = 64

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Listener:
    """Whoever wants to know how training goes, and may stop it; called on every rank. This one does nothing."""

    def started(self, progress: Progress, hardware: str) -> None:
        """Everything is ready; the first step comes next."""

    def progressed(self, progress: Progress, points: list[Point]) -> None:
        """New metric points; called between two steps, must return soon."""

    def wants_stop(self) -> bool:
        """Whether this rank was told to stop; asked before every step."""
        return False


class Result(NamedTuple):
    """The outcome of training.

    Attributes:
        weights_digest: SHA-256, hex, of the model's state.
        final_metrics: the last value of each result metric.
    """

    weights_digest: str
    final_metrics: dict[str, float]


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
        device: torch.device | str = "cpu",
        listener: Listener | None = None,
    ) -> Result:
        """Train `module` in place.

        Args:
            module: made alike on every rank, with the generators seeded by `initialisation_seed`.
            data: loaded already, alike on every rank.
            optimizer: makes the optimizer over the one flat parameter.
            group: the ranks that train together; alone if not given.
            device: where this rank computes.
            listener: told of the progress.

        Raises:
            DataError: the data does not fit these settings.
            NonFiniteLoss: the loss left the finite numbers.
            PeerLost: a rank left.
            RanksDisagree: the ranks' parameters or hardware differ.
            Stopped: a listener of some rank wanted to stop.
        """
        fix_arithmetic(self.threads)
        run = _Run(self, module, data, optimizer, group or Group(), torch.device(device), listener or Listener())
        return run.train()


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
        group: Group,
        device: torch.device,
        listener: Listener,
    ) -> None:
        self.config, self.data, self.group, self.device, self.listener = trainer, data, group, device, listener
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

        placement = Placement.deal(trainer.shards, group.world_size)
        self.my_shards = placement.owned[group.rank]
        scalars_start = self.model.size + self.model.buffers_size
        self.buffer_part = slice(self.model.size, scalars_start)
        self.scalar_part = slice(scalars_start, scalars_start + SLOTS)
        width = padded(scalars_start + SLOTS, group.world_size)
        self.sums = ShardSums(placement, group.rank, width, self.model.parameters.dtype, device)
        self.exchange = choose_exchange(placement, group, self.sums)
        self.model.point_gradients_at(self.sums.accumulator[: self.model.size])
        self.scalars = self.sums.accumulator[self.scalar_part].unbind()

        self.optimizer = optimizer([self.model.parameters])
        self.window = Window()
        self.gradient_norm = math.nan
        self.final_metrics: dict[str, float] = {}
        self._order: tuple[int, int, Tensor] | None = None

    def train(self) -> Result:
        """Take all steps."""
        hardware = hardware_class(self.device)
        self.group.agree("the hardware class", hardware)
        self.group.agree("the initial state of the model", weights_digest(self.module))
        self.listener.started(self.progress(0), hardware)
        evaluate_every = self.config.evaluate_every_steps or self.steps_per_epoch
        for step in range(1, self.total_steps + 1):
            self.train_step(step)
            if step == 1:
                self.model.check_gradients_lie_in(self.sums.accumulator)
            metrics: dict[str, float] = {}
            timings: dict[str, float] = {}
            if self.is_logged(step):
                metrics, timings = self.training_metrics()
            if step == self.total_steps or step % evaluate_every == 0:
                metrics |= self.evaluate()
            if metrics:
                self.report(step, metrics, timings)
        digest = weights_digest(self.module)
        self.group.agree("the final state of the model", digest)
        return Result(digest, self.final_metrics)

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
        stop = float(self.listener.wants_stop())
        if not self.module.training:
            self.module.train()
        self.model.remember_buffers()
        epoch, position, examples, active_shards = self.minibatch(step)
        for shard in self.sums.each():
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
            if shard == self.my_shards.start and stop:
                self.scalars[STOP].add_(stop)
        total = self.exchange.total()
        # The one wait for the device: it confirms the exchange before anything is done with what it brought.
        loss_sum, weight, correct, stops = total[self.scalar_part].tolist()
        if stops:
            raise Stopped(step - 1)
        if not math.isfinite(loss_sum):
            raise NonFiniteLoss(step, loss_sum)
        self.apply(step, total, weight, active_shards)
        self.window.add(Sums(loss_sum, weight, correct), examples, time.perf_counter() - began)

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
        """Result metrics and timings of the steps since the last time; starts a new window."""
        window, self.window = self.window, Window()
        metrics = window.sums.means("train", self.has_accuracy)
        metrics["grad_norm"] = self.gradient_norm
        metrics["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        return metrics, window.timings()

    def report(self, step: int, metrics: dict[str, float], timings: dict[str, float]) -> None:
        """Tell the listener, once it is sure that all ranks hold the same parameters."""
        self.group.agree(f"the model after step {step}", fingerprint(self.model.parameters))
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
