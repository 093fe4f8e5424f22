"""Writes checkpoints while training goes on."""

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence

from lockstep.workers import awake_clock
from lockstep.workers.engine.errors import LEARNING_RATE, NonFiniteParameters, Parameter
from lockstep.workers.engine.state.checkpoint import Checkpoint, Checkpoints
from lockstep.workers.engine.state.state import TrainState, first_non_finite

PATIENCE_S = 5.0
"""How long training waits for a checkpoint that is still being written, once, before it goes on without the next."""
LIMIT_S = 120.0
"""How long the end of training waits for a checkpoint, and for its size in bytes over SLOWEST_BYTES_PER_S longer."""
SLOWEST_BYTES_PER_S = 10e6
LOOK_EVERY_S = 0.1
"""How often whoever waits for a checkpoint looks whether it shall wait no more."""


class Writer:
    """Writes checkpoints in a thread of its own, one at a time. A state whose parameters are not finite is refused.

    A file system that hangs holds up nothing for long: checkpoints are left out until it goes on.

    Args:
        checkpoints: where to.
        parameters: names of the trainable parameters; buffers may hold infinities, as a mask does.
        kept: told of all checkpoints that are whole whenever that may have changed.
        failed: told the step and the error of each that could not be written.
        rate: what the learning rate is called, for who reads why a state was refused.

    Attributes:
        written: the step of the last state that was written whole; None for none.
    """

    written: int | None = None

    def __init__(
        self,
        checkpoints: Checkpoints,
        parameters: Collection[str],
        kept: Callable[[Sequence[Checkpoint]], None],
        failed: Callable[[int, Exception], None],
        rate: Parameter = LEARNING_RATE,
    ) -> None:
        self._rate = rate
        self._checkpoints, self._parameters = checkpoints, parameters
        self._kept, self._failed = kept, failed
        self._thread: threading.Thread | None = None
        self._step: int | None = None
        self._limit_s = self._give_up_at = 0.0
        self._is_late = False
        self._refusal: NonFiniteParameters | None = None

    def write(self, step: int, copy: Callable[[], TrainState], is_last: bool = False) -> bool:
        """Begin to write a state, once the one before is written, so that at most one copy is held.

        Args:
            step: of the state.
            copy: makes a copy of it.
            is_last: none follows; if it is left out, that is told in any case.

        Returns:
            False when it was left out, since the one before is still being written.

        Raises:
            NonFiniteParameters: the one before was refused.
        """
        if not self._is_done_within(0.0 if self._is_late else PATIENCE_S):
            if is_last or not self._is_late:
                what = "a look at what is there" if self._step is None else f"the one of step {self._step}"
                words = f"{what} is not done yet, and until it is no other is begun"
                self._failed(step, TimeoutError(words))
            self._is_late = True
            return False
        self.check()
        state = copy()
        size_bytes = sum(tensor.nbytes for tensors in (state.model, state.training) for tensor in tensors.values())
        self._start(step, LIMIT_S + size_bytes / SLOWEST_BYTES_PER_S, self._write, state)
        return True

    def take_over(self) -> None:
        """Begin to tell which checkpoints there are: the rank that wrote them may have died before it could."""
        if self._is_done_within(0.0):  # else that is told in a moment anyway
            self._start(None, LIMIT_S, self._take_over)

    def wait(self, look: Callable[[], None] = lambda: None) -> None:
        """Return when nothing is being written, or when that has taken too long.

        Args:
            look: called now and then; what it raises ends the wait, and the writing goes on.
        """
        while not self._is_done_within(min(LOOK_EVERY_S, self._give_up_at - awake_clock.now())):
            if awake_clock.now() >= self._give_up_at:
                self._give_up()
                return
            look()

    def _give_up(self) -> None:
        if not self._is_late and self._step is not None:
            words = f"the file system has not taken it for {self._limit_s:.0f} s"
            self._failed(self._step, TimeoutError(words))
        self._is_late = True

    def check(self) -> None:
        """Raise NonFiniteParameters if a state was refused; costs nothing."""
        if self._refusal is not None:
            raise self._refusal

    def _is_done_within(self, patience_s: float) -> bool:
        if self._thread is not None:
            gives_up_at = awake_clock.now() + patience_s
            self._thread.join(max(0.0, patience_s))
            while self._thread.is_alive():
                left_s = gives_up_at - awake_clock.now()
                if left_s <= 0:
                    return False
                self._thread.join(left_s)
            self._thread = None
        return True

    def _start(self, step: int | None, limit_s: float, work: Callable[..., None], *args: TrainState) -> None:
        self._step, self._limit_s, self._give_up_at = step, limit_s, awake_clock.now() + limit_s
        self._is_late = False
        self._thread = threading.Thread(target=work, args=args, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, state: TrainState) -> None:
        name = first_non_finite((name, state.model[name]) for name in self._parameters if name in state.model)
        if name is not None:
            self._refusal = NonFiniteParameters(state.step, name, self._rate)
            return
        try:
            self._checkpoints.write(state)
        except Exception as error:  # whatever a file system raises: training goes on without this checkpoint
            self._failed(state.step, error)
        else:
            self.written = state.step
            with contextlib.suppress(Exception):  # what cannot be removed now is tried again after the next
                self._checkpoints.prune(state.step)
        self._tell()

    def _take_over(self) -> None:
        with contextlib.suppress(Exception):
            self._checkpoints.take_over()
        self._tell()

    def _tell(self) -> None:
        with contextlib.suppress(Exception):  # it is told after the next
            self._kept(self._checkpoints.kept())
