"""What can go wrong in the engine.

EngineError
├── DataError            the data, or a parameter that does not fit it; names it and the hint
├── DeviceUnusable       PyTorch does not compute on the device; says why
├── ModelError           the module does what training cannot be exact with; names the part and the hint
├── NonFiniteStep        a step cannot be applied; the parameters are those of the step before
│   ├── NonFiniteLoss      the loss became infinite or not a number
│   └── NonFiniteGradient  the loss is finite, its gradient is not
├── NonFiniteParameters  a step has made parameters infinite or not a number
├── NotDeterministic     a shard gave other bits than before, or on one rank than on another; names the part
├── PeerLost             a rank left during a collective; no parameter of this rank has changed
├── RanksDisagree        ranks that must hold the same bits do not
│   └── HardwareDiffers  they could not: their hardware is of several classes
└── Stopped              training was asked to stop, and stopped between two steps
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """A parameter of the engine that a message names.

    Attributes:
        name: of the argument, such as "batch_size".
        words: what a message calls it, where that is not its name.
    """

    name: str
    words: str = ""


GRADIENT_CLIP_NORM = Parameter("gradient_clip_norm")
LEARNING_RATE = Parameter("learning_rate", "learning rate")


class EngineError(Exception):
    """Base of everything that the engine raises.

    Args:
        words: the message, in parts.
    """

    def __init__(self, *words: str | Parameter) -> None:
        self._words = words
        super().__init__(self._message({}))

    def rename(self, names: Mapping[str, str]) -> None:
        """Call parameters of the engine by other names: whoever uses it through a service knows those of that alone.

        Args:
            names: what to call each, by its name here; those that are left out keep that.
        """
        self.args = (self._message(names),)

    def _message(self, names: Mapping[str, str]) -> str:
        return "".join(
            part if isinstance(part, str) else names.get(part.name, part.words or part.name) for part in self._words
        )


class DataError(EngineError):
    """The data cannot be used as it was asked.

    Args:
        field: what is at fault: a parameter of the engine, or what whoever has made the data calls it.
        words: the rest of the message, in parts.

    Attributes:
        field: the same.
    """

    def __init__(self, field: str, *words: str | Parameter) -> None:
        super().__init__(Parameter(field), ": ", *words)
        self.field = field

    def rename(self, names: Mapping[str, str]) -> None:
        """Call parameters of the engine by other names, the field at fault too."""
        super().rename(names)
        self.field = names.get(self.field, self.field)


class ModelError(EngineError):
    """The module or its optimizer does what training cannot be exact with; the message names the part and the hint."""


class NonFiniteStep(EngineError):
    """A step cannot be applied, since its loss or gradient is not finite; the parameters are those of the step before.

    Args:
        step: that cannot be applied.
        what: is not finite.
        hint: what to do, in parts.

    Attributes:
        step: the same.
        is_kept: the step before it is in a checkpoint.
    """

    def __init__(self, step: int, what: str, *hint: str | Parameter) -> None:
        self.step, self.is_kept, self._what = step, False, what
        super().__init__(*hint)

    def note_checkpoint(self) -> None:
        """Say that the step before is in a checkpoint."""
        self.is_kept = True
        self.args = (self._message({}),)

    def _message(self, names: Mapping[str, str]) -> str:
        where = ", of which there is a checkpoint" if self.is_kept else ""
        return f"{self._what}; the parameters are those of step {self.step - 1}{where}. {super()._message(names)}"


class NonFiniteLoss(NonFiniteStep):
    """The loss became infinite or not a number; `rate` is that of the optimizer."""

    def __init__(self, step: int, loss: float, rate: Parameter) -> None:
        what = f"train_loss is {loss} at step {step}"
        if step == 1:  # nothing has been learnt yet
            super().__init__(
                step,
                what,
                "Look for values that are not finite in the data and in the weights that training begins with, and for "
                "a logarithm, an overflow or a division by 0 in forward or loss.",
            )
        else:
            super().__init__(step, what, "Try a lower ", rate, " or set ", GRADIENT_CLIP_NORM, ".")


class NonFiniteGradient(NonFiniteStep):
    """The loss is finite, and the gradient of the parameter `name` is infinite or not a number."""

    def __init__(self, step: int, name: str, loss: float) -> None:
        super().__init__(
            step,
            f"the gradient of {name} is not finite at step {step}, whose train_loss is {loss}",
            "Look for a square root, a logarithm, a norm or a division at 0 in forward or loss, and for a sum that is "
            "too large for a 16-bit dtype.",
        )


class NonFiniteParameters(EngineError):
    """A step has made parameters infinite or not a number; `name` is the first of them."""

    def __init__(self, step: int, name: str, rate: Parameter) -> None:
        words = f"{name} is not finite after step {step}."
        super().__init__(f"{words} Try a lower ", rate, " or set ", GRADIENT_CLIP_NORM, ".")
        self.step = step


class NotDeterministic(EngineError):
    """What a shard gives depends on what was computed before it, or on the rank; names the part and the hint."""


class PeerLost(EngineError):
    """A rank left during a collective; no parameter of this rank has changed."""


class RanksDisagree(EngineError):
    """Ranks that must hold the same bits do not."""


class HardwareDiffers(RanksDisagree):
    """Ranks compute on hardware of several classes, which may round differently."""


class DeviceUnusable(EngineError):
    """PyTorch does not compute on the device."""


class Stopped(EngineError):
    """Training was asked to stop, and stopped between two steps.

    Attributes:
        step: the last step that was applied.
        is_kept: a checkpoint of it was wanted.
    """

    def __init__(self, step: int, is_kept: bool = False) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.is_kept = step, is_kept
