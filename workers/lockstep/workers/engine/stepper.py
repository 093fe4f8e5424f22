"""One step of minibatch SGD on one rank, and the validation between steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import seed_generators
from lockstep.workers.engine.errors import DataError, EngineError, NonFiniteLoss, Stopped
from lockstep.workers.engine.flat import FlatModel, l2_norm
from lockstep.workers.engine.flops import flops_per_step
from lockstep.workers.engine.group import Group
from lockstep.workers.engine.ledger import Ledger, Phase, marks_of
from lockstep.workers.engine.listener import Activity, Listener, Wish
from lockstep.workers.engine.metrics import Sums
from lockstep.workers.engine.module import Module, has_batch_statistics, materialise
from lockstep.workers.engine.order import EpochOrder, derive_seed
from lockstep.workers.engine.overlap import choose_exchange
from lockstep.workers.engine.reduce import Exchange, ShardSums, padded
from lockstep.workers.engine.shards import Placement, part

# Slots at the front of the exchanged row; each wish is counted.
LOSS, WEIGHT, CORRECT, STOP, KEEP, SLOTS = 0, 1, 2, 3, 4, 5
# Minibatches whose order is computed at once: enough to make the work per minibatch vanish.
ORDER_AHEAD = 64
OURS = ("lockstep.workers.models", "lockstep.workers.datasets")
"""Where models and data come from that draw from torch's generator alone."""

OptimizerFactory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Settings:
    """What a step depends on beside module, data and optimizer; see `Trainer`."""

    batch_size: int
    shards: int
    seed: int
    gradient_clip_norm: float | None


class Step(NamedTuple):
    """What a step brought.

    Attributes:
        sums: over its minibatch.
        examples: size of the minibatch.
        gradient_norm: L2 norm of the gradient before clipping; NaN when nobody asked for it.
    """

    sums: Sums
    examples: int
    gradient_norm: float


class Stepper:
    """Computes this rank's shards, completes the sums with the group, and updates the parameters.

    Args:
        settings: of the run.
        module: made alike on every rank.
        data: loaded, alike on every rank.
        optimizer: makes the optimizer over the one flat parameter.
        device: where this rank computes.
        listener: told of each activity, asked for its wish.
        ledger: told of each phase.

    Raises:
        DataError: the data does not fit the settings.
    """

    def __init__(
        self,
        settings: Settings,
        module: Module,
        data: DataModule,
        optimizer: OptimizerFactory,
        device: torch.device,
        listener: Listener,
        ledger: Ledger,
    ) -> None:
        self.settings, self.data, self.device, self.listener = settings, data, device, listener
        self.ledger = ledger
        self.train_set, self.validation_set = data.train.to(device), data.validation.to(device)
        if settings.batch_size > len(self.train_set):
            raise DataError(
                "training.batch_size",
                f"{settings.batch_size} is more than the {len(self.train_set)} training examples; "
                f"allowed: 1 to {len(self.train_set)}",
            )
        self.steps_per_epoch = math.ceil(len(self.train_set) / settings.batch_size)
        self.module = module.to(device)
        self.is_ours = all(type(part).__module__.startswith(OURS) for part in (module, data))
        self.seed("materialise")
        materialise(self.module, data.take(self.train_set, slice(0, 2))[0])
        self.model = FlatModel(self.module)
        self.fewest_examples = 2 if has_batch_statistics(module) else 1
        self.optimizer = optimizer([self.model.parameters])
        self.optimizer_draws = not type(self.optimizer).__module__.startswith("torch.optim.")
        # A row: scalars, changes of buffers, gradients. What a backward pass completes last lies in front.
        self.scalar_part = slice(0, SLOTS)
        self.buffer_part = slice(padded(SLOTS), padded(SLOTS) + self.model.buffers_size)
        self.gradient_part = slice(self.buffer_part.stop, self.buffer_part.stop + self.model.size)
        self.exchange: Exchange | None = None
        self._order: tuple[int, int, Tensor] | None = None

    def seed(self, *purpose: int | str) -> None:
        """Seed every generator that may be drawn from, as a function of the job's seed and of what it is for alone."""
        seed_generators(derive_seed(self.settings.seed, *purpose), self.device, also_pythons=not self.is_ours)

    def enter(self, group: Group) -> None:
        """Take this rank's place in a group."""
        self.group = group
        self.ledger.follow(group.waits, marks_of(self.device))
        placement = Placement.deal(self.settings.shards, group.world_size)
        self.my_shards = placement.owned[group.rank]
        width = padded(self.gradient_part.stop, group.world_size)
        self.sums = ShardSums(placement, group.rank, width, self.model.parameters.dtype, self.device)
        self.sums.neighbours_add_up = self.model.gradients_come_whole is not False
        self.exchange = choose_exchange(placement, group, self.sums, self.model, self.gradient_part.start)
        self.model.point_gradients_at(self.sums.accumulator[self.gradient_part])
        self.gradients_are_checked = False
        self.scalars = self.sums.accumulator[self.scalar_part].unbind()

    def leave(self) -> None:
        """Give up this rank's place, before the group is left; harmless without one."""
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None

    def take_step(self, step: int, norm_is_wanted: bool) -> Step:
        """Take one synchronous SGD step on a global minibatch.

        The gradient is that of the mean loss over the minibatch: summed over its shards in tree order, divided by the
        weight of its losses.

        Args:
            step: number of the step, from 1.
            norm_is_wanted: whether the norm of the gradient is of interest.

        Raises:
            PeerLost: a rank left during the exchange; nothing of this rank has changed.
            NonFiniteLoss: the loss is not finite; nothing has changed.
            Stopped: some rank wants to stop; nothing has changed.
        """
        if not self.module.training:
            self.module.train()
        self.model.remember_buffers()
        epoch, position, examples, active_shards = self.minibatch(step)
        try:
            self.compute(step, epoch, position, examples, active_shards)
            self.listener.entered(Activity.EXCHANGE, step)
            self.ledger.enter(Phase.EXCHANGE)
            assert self.exchange is not None
            total = self.exchange.total()
            # This wait for the device confirms the exchange before anything is done with what it brought.
            loss_sum, weight, correct, stops, keeps = total[self.scalar_part].tolist()
            self.group.check()
            if stops:
                raise Stopped(step - 1, is_kept=bool(keeps))
            if not math.isfinite(loss_sum):
                raise NonFiniteLoss(step, loss_sum)
        except EngineError:
            self.model.restore_buffers()
            raise
        self.listener.entered(Activity.UPDATE, step)
        self.ledger.enter(Phase.OPTIMIZER)
        if self.optimizer_draws:
            self.seed("update", step)
        norm = self.apply(total, weight, active_shards, norm_is_wanted)
        if not self.gradients_are_checked:
            self.model.check_gradients_lie_in(self.sums.accumulator[self.gradient_part])
            self.gradients_are_checked = True
        return Step(Sums(loss_sum, weight, correct), examples, norm)

    def compute(self, step: int, epoch: int, position: int, examples: int, active_shards: int) -> None:
        """Sum up this rank's shards of the minibatch at `position` of an epoch, and its wish."""
        wish = self.listener.wish()
        for shard in self.sums.each():
            self.listener.entered(Activity.COMPUTE, step)
            if shard == self.my_shards[-1] and self.exchange is not None:
                self.exchange.before_last()
            if shard < active_shards:
                shard_range = part(examples, shard, active_shards)
                self.compute_shard(step, shard, self.indices(epoch, position, shard_range))
            if shard == self.my_shards.start and wish is not Wish.GO_ON:
                self.scalars[STOP].add_(1.0)
                self.scalars[KEEP].add_(float(wish is Wish.KEEP_AND_STOP))
            wait_for_device(self.device)

    def compute_shard(self, step: int, shard: int, indices: Tensor) -> None:
        """Add the loss and the gradient of a shard, of the examples at `indices`, to the row."""
        is_sampled = self.ledger.is_sampled
        if is_sampled:
            self.ledger.part(Phase.DATA)
        self.seed(step, shard)
        inputs, targets = self.data.take(self.train_set, indices, training=True)
        if is_sampled:
            self.ledger.part(Phase.FORWARD)
        self.model.restore_buffers()
        outputs = self.module(inputs)
        losses = self.module.loss(outputs, targets)
        loss = losses.sum()
        self.count(loss.detach(), losses, outputs.detach(), targets)
        if is_sampled:
            self.ledger.part(Phase.BACKWARD)
        self.add_gradients(loss)

    def add_gradients(self, loss: Tensor) -> None:
        """Have autograd add the gradient of a shard's loss to what is in the row."""
        if self.model.gradients_come_whole is None:
            with self.model.counting_additions():
                loss.backward()  # type: ignore[no-untyped-call]
            self.sums.neighbours_add_up = bool(self.model.gradients_come_whole)
        else:
            loss.backward()  # type: ignore[no-untyped-call]

    def apply(self, total: Tensor, weight: float, active_shards: int, norm_is_wanted: bool) -> float:
        """Update the parameters from the sums over all shards, (width,), in place of `total`; returns the norm."""
        gradient = total[self.gradient_part]
        gradient.div_(weight)
        limit = self.settings.gradient_clip_norm
        norm = torch.tensor(math.nan)
        if limit is not None or norm_is_wanted:
            norm = l2_norm(gradient)
        if limit is not None:
            gradient.mul_((limit / norm).clamp(max=1.0).to(gradient.dtype))
        self.model.parameters.grad = gradient
        self.optimizer.step()
        self.model.apply_buffer_changes(total[self.buffer_part], active_shards)
        return norm.item() if norm_is_wanted else math.nan

    def count(self, loss: Tensor, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a shard's loss, weight, right answers and changes of buffers to the row that is exchanged."""
        self.scalars[LOSS].add_(loss)
        self.scalars[WEIGHT].add_(self.module.weight(losses, targets))
        correct = self.module.correct(outputs, targets)
        if correct is not None:
            self.scalars[CORRECT].add_(correct)
        self.model.add_buffer_changes(self.sums.accumulator[self.buffer_part])

    def flops_per_step(self) -> float:
        """Floating-point operations of a step on all ranks; 0 where they cannot be counted. Changes nothing."""
        example = self.data.take(self.train_set, slice(0, 2))
        return flops_per_step(self.module, example, self.settings.batch_size)

    def minibatch(self, step: int) -> tuple[int, int, int, int]:
        """Epoch, first position in it, number of examples and number of shards with examples, of a minibatch."""
        epoch, batch = divmod(step - 1, self.steps_per_epoch)
        position = batch * self.settings.batch_size
        examples = min(self.settings.batch_size, len(self.train_set) - position)
        return epoch, position, examples, max(1, min(self.settings.shards, examples // self.fewest_examples))

    def indices(self, epoch: int, position: int, shard_range: range) -> Tensor:
        """Examples of a shard of the minibatch at `position` of an epoch, int64, on the device."""
        ahead = ORDER_AHEAD * self.settings.batch_size
        start = position // ahead * ahead
        if self._order is None or self._order[:2] != (epoch, start):
            order = EpochOrder(len(self.train_set), self.settings.seed, epoch)
            self._order = epoch, start, order[start : min(start + ahead, order.size)].to(self.device)
        first = position - start
        return self._order[2][first + shard_range.start : first + shard_range.stop]

    @torch.no_grad()
    def evaluate(self, step: int) -> Sums:
        """Sums over the validation set, after a step.

        It is cut into shards like a minibatch; a shard is computed in batches of at most `batch_size`, whose sums are
        added in order in float64.

        Raises:
            PeerLost: a rank left.
        """
        self.ledger.enter(Phase.VALIDATION)
        self.module.eval()
        table = torch.zeros(self.settings.shards, 3, dtype=torch.float64)
        for shard in self.my_shards:
            self.seed("validation", step, shard)
            table[shard] = self.evaluate_shard(part(len(self.validation_set), shard, self.settings.shards), step)
        self.listener.entered(Activity.EXCHANGE, step)
        self.ledger.enter(Phase.EXCHANGE)
        self.group.fill_in(table)
        return Sums.over(table.tolist())

    def evaluate_shard(self, examples: range, step: int) -> Tensor:
        """Sums of loss, weight and right answers over a range of the validation set, float64, (3,)."""
        total = torch.zeros(3, dtype=torch.float64, device=self.device)
        for start in range(examples.start, examples.stop, self.settings.batch_size):
            self.listener.entered(Activity.EVALUATE, step)
            batch = slice(start, min(start + self.settings.batch_size, examples.stop))
            inputs, targets = self.data.take(self.validation_set, batch)
            outputs = self.module(inputs)
            losses = self.module.loss(outputs, targets)
            total[LOSS] += losses.sum(dtype=torch.float64)
            total[WEIGHT] += self.module.weight(losses, targets)
            correct = self.module.correct(outputs, targets)
            if correct is not None:
                total[CORRECT] += correct
            wait_for_device(self.device)
        return total.cpu()


def wait_for_device(device: torch.device) -> None:
    """Return when a GPU has done what this rank gave it: a launch returns at once, also on one that hangs.

    So this rank's own work ends within its own phase. What the GPU exchanges goes on in a stream of its own.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
