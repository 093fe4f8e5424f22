"""Synchronous minibatch SGD whose result does not depend on the number of workers.

The argument why is in docs/design/one-curve.md. A step is computed in `engine/stepper.py`; `engine/loop.py` takes one
after another, through the deaths of ranks.
"""

import math
import numbers
from dataclasses import dataclass

import torch

from lockstep.contract.bounds import MOST_CPUS_PER_WORKER, MOST_EPOCHS, MOST_SHARDS, MOST_STEPS
from lockstep.workers.engine.audit.audit import AUDITS, START
from lockstep.workers.engine.audit.checks import check_data, check_module
from lockstep.workers.engine.audit.layers import operations_told_by_name
from lockstep.workers.engine.compiler import fix_compiler, spare_import
from lockstep.workers.engine.data_module import DataModule
from lockstep.workers.engine.determinism import fix_arithmetic
from lockstep.workers.engine.deterministic_layers import use_deterministic_forms
from lockstep.workers.engine.devices import check_usable
from lockstep.workers.engine.exchange.group import Group
from lockstep.workers.engine.exchange.streams import training_line
from lockstep.workers.engine.ledger import Ledger
from lockstep.workers.engine.listener import Listener, Result
from lockstep.workers.engine.loop import Loop, Origin, Regroup
from lockstep.workers.engine.module import Module
from lockstep.workers.engine.precision import FP32, MEMORY_FORMATS, PRECISIONS, TF32, Precision
from lockstep.workers.engine.randomness import Settings, derive_seed
from lockstep.workers.engine.schedule import Schedule
from lockstep.workers.engine.stepper import Stepper
from lockstep.workers.engine.update import OptimizerFactory

MOST = {
    "max_epochs": MOST_EPOCHS,
    "max_steps": MOST_STEPS,
    "batch_size": 1_000_000_000,
    "shards": MOST_SHARDS,
    "log_every_steps": MOST_STEPS,
    "evaluate_every_steps": MOST_STEPS,
    "threads": MOST_CPUS_PER_WORKER,
}
"""The largest value of each count of a trainer; the least is 1."""
WORDS = {"audit": AUDITS, "precision": PRECISIONS, "memory_format": tuple(MEMORY_FORMATS)}
"""The words that a trainer takes."""


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
        precision: "fp32", "tf32" (on a GPU alone) or "bf16"; see `Precision`.
        memory_format: "contiguous" or "channels_last"; see `Precision`.
        audit: when the engine looks whether a shard gives the same bits whatever was computed before it: "start" of
            training; "always", where each rank computes three shards and two batches of the validation more in every
            step; or "off".

    Raises:
        ValueError: a value is out of its range; the message names the argument.
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
    audit: str = START
    precision: str = FP32
    memory_format: str = "contiguous"

    def __post_init__(self) -> None:
        if (self.max_epochs is None) == (self.max_steps is None):
            raise ValueError("set exactly one of max_epochs and max_steps")
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is None and name in ("max_epochs", "max_steps", "evaluate_every_steps"):
                continue
            if not _is_whole(value) or not 1 <= value <= most:
                raise ValueError(f"{name} is {value!r}; allowed: whole numbers from 1 to {most:,}")
        if not _is_whole(self.seed) or not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed is {self.seed!r}; allowed: whole numbers from 0 to {(1 << 63) - 1:,}")
        limit = self.gradient_clip_norm
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(
                f"gradient_clip_norm is {limit!r}; allowed: finite numbers greater than 0, or None for none"
            )
        for name, words in WORDS.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(map(repr, words))}")

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
        ledger: Ledger | None = None,
    ) -> Result:
        """Train `module` in place.

        Args:
            module: made alike on every rank, with the generators seeded by `initialisation_seed`.
            data: loaded already, alike on every rank.
            optimizer: makes the optimizer over a list of parameters; called with those of the module, and again with
                one flat parameter where that makes no difference but for speed.
            group: the ranks that train together; if not given, what `regroup` gives, or else alone.
            regroup: called when a rank was lost; without it that ends training.
            device: where this rank computes.
            listener: told of the progress.
            origin: checkpoints, to go on from and to write.
            ledger: told where the time goes.

        Raises:
            DataError: the data, or the weights to start from, do not fit these settings, or the data is not that of
                the other ranks or of the checkpoint.
            DeviceUnusable: PyTorch does not compute on the device.
            ModelError: the module or its optimizer does what cannot be trained exactly; names the part and the hint.
            NonFiniteLoss: the loss left the finite numbers.
            NonFiniteGradient: the gradient did.
            NonFiniteParameters: the parameters did.
            NotDeterministic: the audit saw a shard give other bits than before, or on one rank than on another.
            PeerLost: a rank left, and there is no `regroup`.
            RanksDisagree: the ranks' parameters or hardware differ.
            ValueError: the device does not compute in the trainer's precision, or `fit` is called in torch.autocast.
            Stopped: a listener of some rank wanted to stop.
        """
        check_module(module)
        check_data(data)
        device = self._set_up(torch.device(device))
        use_deterministic_forms(module, device)
        listener = listener or Listener()
        with operations_told_by_name(module), training_line(device):
            precision = Precision(self.precision, self.memory_format)
            settings = Settings(self.batch_size, self.shards, self.seed, self.gradient_clip_norm, precision)
            stepper = Stepper(settings, module, data, optimizer, device, listener, ledger or Ledger())
            schedule = Schedule(
                total_steps=self.max_steps or (self.max_epochs or 0) * stepper.steps_per_epoch,
                log_every=self.log_every_steps,
                evaluate_every=self.evaluate_every_steps or stepper.steps_per_epoch,
            )
            loop = Loop(stepper, schedule, listener, origin or Origin(), self.audit)
            return loop.run(group, regroup)

    def _set_up(self, device: torch.device) -> torch.device:
        """Set this process up to compute on a device; returns that with its number."""
        if self.precision == TF32 and device.type != "cuda":
            raise ValueError("precision is 'tf32', in which GPUs compute alone; allowed on a CPU: 'fp32', 'bf16'")
        check_usable(device)
        if torch.is_autocast_enabled(device.type):  # which keeps weights as they were in the first step
            raise ValueError("fit was called inside of torch.autocast; call it outside, with precision='bf16'")
        fix_arithmetic(self.threads, allows_tf32=self.precision == TF32)
        fix_compiler()
        spare_import()
        if device.type == "cuda":  # what names no device, such as pinned memory, belongs to the current one
            device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
            torch.cuda.set_device(device)
        return device


def initialisation_seed(seed: int) -> int:
    """Seed for the generators while a module is made."""
    return derive_seed(seed, "initialisation")


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
