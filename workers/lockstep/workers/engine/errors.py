"""What can go wrong in the engine.

EngineError
├── DataError            the data, or a spec that does not fit it; names the field and the hint
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

HINT = "Try a lower {rate} or set training.gradient_clip_norm."


class EngineError(Exception):
    """Base of everything that the engine raises."""


class DataError(EngineError):
    """The data cannot be used as the spec asks.

    Attributes:
        field: path of the field of the spec at fault, such as "data.idx.root".
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ModelError(EngineError):
    """The module or its optimizer does what training cannot be exact with; the message names the part and the hint."""


class NonFiniteStep(EngineError):
    """A step cannot be applied, since its loss or gradient is not finite; the parameters are those of the step before.

    Attributes:
        step: that cannot be applied.
        is_kept: the step before it is in a checkpoint.
    """

    def __init__(self, step: int, what: str, hint: str) -> None:
        super().__init__(step, what, hint)
        self.step, self.is_kept = step, False

    def __str__(self) -> str:
        step, what, hint = self.args
        where = ", of which there is a checkpoint" if self.is_kept else ""
        return f"{what}; the parameters are those of step {step - 1}{where}. {hint}"


class NonFiniteLoss(NonFiniteStep):
    """The loss became infinite or not a number."""

    def __init__(self, step: int, loss: float, rate: str) -> None:
        super().__init__(step, f"train_loss is {loss} at step {step}", HINT.format(rate=rate))


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

    def __init__(self, step: int, name: str, rate: str) -> None:
        super().__init__(f"{name} is not finite after step {step}. {HINT.format(rate=rate)}")
        self.step = step


class NotDeterministic(EngineError):
    """What a shard gives depends on what was computed before it, or on the rank; names the part and the hint."""


class PeerLost(EngineError):
    """A rank left during a collective; no parameter of this rank has changed."""


class RanksDisagree(EngineError):
    """Ranks that must hold the same bits do not."""


class HardwareDiffers(RanksDisagree):
    """Ranks compute on hardware of several classes, which may round differently."""


class Stopped(EngineError):
    """Training was asked to stop, and stopped between two steps.

    Attributes:
        step: the last step that was applied.
        is_kept: a checkpoint of it was wanted.
    """

    def __init__(self, step: int, is_kept: bool = False) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.is_kept = step, is_kept
