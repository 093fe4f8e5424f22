"""One step of minibatch SGD on one rank, and the validation between steps."""

import math
from functools import partial

import torch
from torch import Tensor

from lockstep.contract.facts import Phase
from lockstep.workers.engine.buffers.buffers import Buffers
from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import seed_generators
from lockstep.workers.engine.dry_run import Modes, check_losses, rehearse
from lockstep.workers.engine.errors import DataError, EngineError, ModelError, NonFiniteGradient, NonFiniteLoss, Stopped
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.overlap import choose_exchange
from lockstep.workers.engine.exchange.reduce import Exchange, ShardSums, padded
from lockstep.workers.engine.exchange.shards import Placement, part
from lockstep.workers.engine.flat_model import FlatModel, check_trainable, l2_norm
from lockstep.workers.engine.graphs import ShardGraphs, graphs_of
from lockstep.workers.engine.ledger import Ledger, marks_of
from lockstep.workers.engine.listener import Activity, Listener, Wish
from lockstep.workers.engine.metrics import Step, Sums
from lockstep.workers.engine.module import Module, has_batch_statistics
from lockstep.workers.engine.pace import pace_of
from lockstep.workers.engine.randomness import Minibatch, Minibatches, Settings, derive_seed
from lockstep.workers.engine.state.state import check_state_dict
from lockstep.workers.engine.update import OptimizerFactory, Update
from lockstep.workers.engine.validation import Validation

# Slots at the front of the exchanged row; each wish is counted, and each rank on which the step cannot be used.
LOSS, WEIGHT, CORRECT, STOP, KEEP, REPEAT, SLOTS = 0, 1, 2, 3, 4, 5, 6
OURS = ("lockstep.workers.models", "lockstep.workers.datasets")
"""Where models and data come from that draw from torch's generator alone."""


class Stepper:
    """Computes this rank's shards, completes the sums with the group, and updates the parameters.

    Args:
        settings: of the run.
        module: made alike on every rank.
        data: loaded, alike on every rank.
        optimizer: makes the optimizer over a list of parameters.
        device: where this rank computes.
        listener: told of each activity, asked for its wish.
        ledger: told of each phase.

    Raises:
        DataError: the data does not fit the settings.
        ModelError: module or optimizer cannot be trained exactly.

    Attributes:
        has_accuracy: whether the model is judged by its right answers.
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
                "batch_size",
                f"{settings.batch_size} is more than the {len(self.train_set)} training examples; "
                f"allowed: 1 to {len(self.train_set)}",
            )
        self.module = module.to(device)
        check_trainable(self.module)
        self.modes = Modes(self.module)
        self.is_ours = all(type(part).__module__.startswith(OURS) for part in (module, data))
        self.seed("materialise")
        counts = rehearse(self.module, data, self.train_set, settings.precision)
        settings.precision.lay_out(self.module)
        self.has_accuracy = counts and data.num_classes is not None
        self.modes.train()
        self.model = FlatModel(self.module)
        self.buffers = Buffers(self.module, settings.shards)
        check_state_dict(self.module)
        fewest = 2 if has_batch_statistics(module) else 1
        self.minibatches = Minibatches(len(self.train_set), settings, fewest, self.device)
        self.steps_per_epoch = self.minibatches.per_epoch
        self.update = Update(optimizer, self.model)
        self.optimizer = self.update.optimizer
        self.optimizer_draws = not type(self.optimizer).__module__.startswith("torch.optim.")
        # A row: scalars, gradients. What a backward pass completes last lies in front.
        self.scalar_part = slice(0, SLOTS)
        self.gradient_part = slice(padded(SLOTS, dtype=self.dtype), padded(SLOTS, dtype=self.dtype) + self.model.size)
        self.exchange: Exchange | None = None
        self.pace = pace_of(device)
        self.validation = Validation(self.module, data, self.validation_set, settings, self.pace, listener)
        self.graphs = graphs_of(device, self.compute_examples, self.outcome, self.buffers.drop_replacements, self.note)
        self.is_first_step = True
        self.is_spoilt = False

    @property
    def dtype(self) -> torch.dtype:
        """That of parameters and gradients."""
        return self.model.parameters.dtype

    def seed(self, *purpose: int | str) -> None:
        """Seed every generator that may be drawn from, as a function of the job's seed and of what it is for alone."""
        seed_generators(derive_seed(self.settings.seed, *purpose), self.device, also_pythons=not self.is_ours)

    def enter(self, group: Group) -> None:
        """Take this rank's place in a group."""
        self.group = group
        self.ledger.follow(group.waits, marks_of(self.device))
        self.placement = placement = Placement.deal(self.settings.shards, group.world_size)
        self.my_shards = placement.owned[group.rank]
        width = padded(self.gradient_part.stop, group.world_size, self.dtype)
        self.sums = ShardSums(placement, group.rank, width, self.dtype, self.device)
        self.sums.neighbours_add_up = self.model.gradients_come_whole is not False
        self.exchange = choose_exchange(placement, group, self.sums, self.model, self.gradient_part.start)
        self.model.point_gradients_at(self.sums.accumulator[self.gradient_part])
        self.scalars = self.sums.accumulator[self.scalar_part].unbind()
        # A dtype of 16 bits cannot hold sums of losses: they go in a table of their own, by way of a row.
        self.wide = self.wide_row = None
        self.counts = self.scalars
        if self.dtype.itemsize < torch.float32.itemsize:
            self.wide = torch.zeros(self.settings.shards, 3, device=self.device)
            self.wide_row = torch.zeros(3, device=self.device)
            self.counts = self.wide_row.unbind()
        if self.graphs is not None:
            self.graphs.forget()

    def agree_on_buffers(self) -> None:
        """Hold those buffers for live that some rank does; every rank holds the same state now.

        Raises:
            ModelError: a buffer has changed in a way that the engine does not see.
            PeerLost: a rank left.
        """
        self.buffers.enter()
        self.agree()

    def agree(self) -> None:
        """The same in the middle of a generation."""
        self.buffers.agree(self.group)
        if self.graphs is not None:  # what they restore may have become more
            self.graphs.forget()

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
            NonFiniteGradient: its gradient is not; nothing has changed.
            ModelError: the module does what cannot be exact; nothing has changed.
            Stopped: some rank wants to stop; nothing has changed.
        """
        if not self.module.training:
            self.modes.train()
        self.model.note_parameters()
        self.buffers.note()
        minibatch = self.minibatches.at(step)
        try:
            total = self.add_up(step, minibatch)
            while total is None:
                self.agree()
                total = self.add_up(step, minibatch)
            sums, gradient = total
            self.buffers.exchange(self.group, self.placement)
            # Over NCCL that has only been launched: what it brings is not to be looked at before it has come.
            self.pace.wait()
            self.group.check()
            self.buffers.check_same(minibatch.active_shards)
        except EngineError:
            self.buffers.break_off()
            raise
        self.listener.entered(Activity.UPDATE, step)
        self.ledger.enter(Phase.OPTIMIZER)
        if self.optimizer_draws:
            self.seed("update", step)
        norm = self.apply(gradient, sums.weight, norm_is_wanted)
        self.buffers.combine(minibatch.active_shards)
        return Step(sums, minibatch.examples, norm)

    def add_up(self, step: int, minibatch: Minibatch) -> tuple[Sums, Tensor] | None:
        """Sums over all shards of a minibatch, and the sum of their gradients, (size,); None if it must be repeated.

        Raises:
            EngineError: see `take_step`.
        """
        self.compute(step, minibatch)
        self.listener.entered(Activity.EXCHANGE, step)
        self.ledger.enter(Phase.EXCHANGE)
        assert self.exchange is not None
        total = self.exchange.total()
        gradient = total[self.gradient_part]
        gradient_sum = gradient.sum()  # finite only if each of them is
        # This wait for the device confirms the exchange before anything is done with what it brought.
        loss_sum, weight, correct, stops, keeps, repeats = total[self.scalar_part].tolist()
        self.group.check()
        if stops:
            raise Stopped(step - 1, is_kept=bool(keeps))
        if repeats:
            return None
        if self.wide is not None:
            table = self.wide.double().cpu()
            self.group.fill_in(table)
            loss_sum, weight, correct = Sums.over(table.tolist())
        if not math.isfinite(loss_sum):
            raise NonFiniteLoss(step, loss_sum, self.update.rate)
        if not weight >= 0:
            raise ModelError(f"weight_of returned numbers whose sum is {weight} at step {step}; a weight is 0 or more")
        if not math.isfinite(gradient_sum.item()):
            name = self.model.first_non_finite(gradient)
            if name is not None:
                raise NonFiniteGradient(step, name, loss_sum / (weight or 1.0))
        return Sums(loss_sum, weight, correct), gradient

    def compute(self, step: int, minibatch: Minibatch) -> None:
        """Sum up this rank's shards of a minibatch, and its wish."""
        wish = self.listener.wish()
        if self.wide is not None:
            self.wide.zero_()
        for shard in self.sums.each():
            self.listener.entered(Activity.COMPUTE, step)
            indices = self.minibatches.indices(minibatch, shard) if shard < minibatch.active_shards else None
            graphs = self.graphs if self.model.gradients_come_whole and not self.ledger.is_sampled else None
            if indices is not None and graphs is not None:
                graphs.prepare(indices, partial(self.seed, step, shard))
            if shard == self.my_shards[-1] and self.exchange is not None:
                self.exchange.before_last()
            if indices is not None:
                self.compute_shard(step, shard, indices, graphs)
            if shard == self.my_shards.start and wish is not Wish.GO_ON:
                self.scalars[STOP].add_(1.0)
                self.scalars[KEEP].add_(float(wish is Wish.KEEP_AND_STOP))
            if shard == self.my_shards[-1]:
                self.look_after()
            self.pace.shard_is_given()
        self.pace.wait()

    def compute_shard(self, step: int, shard: int, indices: Tensor, graphs: ShardGraphs | None = None) -> None:
        """Add the loss and the gradient of a shard, of the examples at `indices`, to the row; by graphs, or without."""
        if self.wide_row is not None:
            self.wide_row.zero_()
        if graphs is not None:
            graphs.compute(indices, partial(self.seed, step, shard))
        else:
            if self.ledger.is_sampled:
                self.ledger.part(Phase.DATA)
            self.seed(step, shard)
            self.compute_examples(indices)
        if self.wide is not None and self.wide_row is not None:
            self.wide[shard].copy_(self.wide_row)
        self.buffers.keep(shard)

    def compute_examples(self, indices: Tensor) -> None:
        """Add the loss and the gradient of the examples at `indices` to the row, as the generators are seeded."""
        is_sampled = self.ledger.is_sampled
        self.data.training = True
        inputs, targets = self.data.take(self.train_set, indices)
        self.data.training = False
        if is_sampled:
            self.ledger.part(Phase.FORWARD)
        self.buffers.restore()
        outputs = self.settings.precision.outputs(self.module, inputs)
        losses = self.module.loss(outputs, targets)
        check_losses(losses)
        loss = losses.sum() if losses.dtype.itemsize >= torch.float32.itemsize else losses.sum(dtype=torch.float32)
        self.count(loss.detach(), losses, outputs.detach() if isinstance(outputs, Tensor) else outputs, targets)
        if is_sampled:
            self.ledger.part(Phase.BACKWARD)
        self.add_gradients(loss)
        self.buffers.take_back()

    def outcome(self) -> list[Tensor]:
        """The tensors that a shard writes."""
        rows = [self.sums.accumulator] if self.wide_row is None else [self.sums.accumulator, self.wide_row]
        return rows + self.buffers.live()

    def add_gradients(self, loss: Tensor) -> None:
        """Have autograd add the gradient of a shard's loss to what is in the row."""
        self.model.begin_backward()
        if self.model.gradients_come_whole is not None:
            loss.backward()  # type: ignore[no-untyped-call]
            if self.model.gradients_come_whole and max(self.model.additions()) > 1:
                # In parts, on top of the neighbour's: no sum of the tree. From now on each shard is summed by itself.
                self.model.gradients_come_whole = self.sums.neighbours_add_up = False
                self.is_spoilt = True
            return
        if (hooked := self.model.hooked()) is not None:
            self.note(
                f"{hooked} has a hook on its gradient, which sees that of the sum of a shard's losses, not of the mean "
                "over a minibatch: right for a mask and wrong for a bound; clip with gradient_clip_norm"
            )
        hooks = self.model.refusing_sparse_gradients()
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            for hook in hooks:
                hook.remove()
        additions = self.model.additions()
        self.model.gradients_come_whole = self.sums.neighbours_add_up = max(additions) <= 1
        unused = [name for name, count in zip(self.model.names, additions, strict=True) if not count]
        if unused and self.update.decays():
            self.note(
                f"{unused[0]} got no gradient in the first shard; one without is taken for 0, so that weight decay "
                "shrinks it: freeze with requires_grad_(False) what is not trained"
            )

    def look_after(self) -> None:
        """After this rank's last shard: see whether the model has done what it must not, or the step is of no use.

        Raises:
            ModelError: it has.
        """
        self.model.check()
        if self.is_first_step:
            self.model.check_structure()
            self.is_first_step = False
        has_changed = self.buffers.have_changed()
        if has_changed or self.is_spoilt:
            self.scalars[REPEAT].add_(1.0)
        self.is_spoilt = False

    def apply(self, gradient: Tensor, weight: float, norm_is_wanted: bool) -> float:
        """Update the parameters from the sum of gradients, (size,), which is overwritten; returns the norm."""
        gradient.div_(weight or 1.0)  # where nothing counts the sum is 0, and so is the mean
        limit = self.settings.gradient_clip_norm
        norm = torch.tensor(math.nan)
        if limit is not None or norm_is_wanted:
            norm = l2_norm(gradient)
        if limit is not None:
            gradient.mul_((limit / norm).clamp(max=1.0).to(gradient.dtype))
        self.update.apply(gradient)
        return norm.item() if norm_is_wanted else math.nan

    def count(self, loss: Tensor, losses: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Add a shard's loss, weight and right answers to what is exchanged."""
        scalars = self.counts
        scalars[LOSS].add_(loss)
        scalars[WEIGHT].add_(self.module.weight_of(losses, targets))
        correct = self.module.count_correct(outputs, targets)
        if correct is not None:
            scalars[CORRECT].add_(correct)

    def note(self, words: str) -> None:
        """Tell people something, on one rank."""
        if self.group.rank == 0:
            self.listener.noted(words)

    def check_unseen(self) -> None:
        """Check, between two steps, for what is too slow to look at in each.

        Raises:
            ModelError: the module does what cannot be exact.
        """
        self.model.check_structure()
        self.buffers.check_unseen()

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
        self.buffers.note()
        table = torch.zeros(self.settings.shards, 3, dtype=torch.float64)
        for shard in self.my_shards:
            self.buffers.undo(is_validation=True)
            self.seed("validation", step, shard)
            examples = part(len(self.validation_set), shard, self.settings.shards)
            table[shard] = self.validation.sums(examples, step)
        self.buffers.undo(is_validation=True)
        self.listener.entered(Activity.EXCHANGE, step)
        self.ledger.enter(Phase.EXCHANGE)
        self.group.fill_in(table)
        return Sums.over(table.tolist())
