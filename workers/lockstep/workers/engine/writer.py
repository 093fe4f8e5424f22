"""Writes checkpoints while training goes on."""

import contextlib
import threading
from collections.abc import Callable, Collection, Sequence

from lockstep.workers.engine.checkpoint import Checkpoint, Checkpoints
from lockstep.workers.engine.errors import NonFiniteParameters
from lockstep.workers.engine.state import TrainState, first_non_finite


class Writer:
    """Writes checkpoints in a thread of its own, one at a time. A state whose parameters are not finite is refused.

    Args:
        checkpoints: where to.
        parameters: names of the trainable parameters; buffers may hold infinities, as a mask does.
        kept: told of all checkpoints that are whole whenever that may have changed.
        failed: told the step and the error of each that could not be written.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        parameters: Collection[str],
        kept: Callable[[Sequence[Checkpoint]], None],
        failed: Callable[[int, Exception], None],
    ) -> None:
        self._checkpoints, self._parameters = checkpoints, parameters
        self._kept, self._failed = kept, failed
        self._thread: threading.Thread | None = None
        self._refusal: NonFiniteParameters | None = None

    def write(self, state: TrainState) -> None:
        """Begin to write a state; waits for the one before, so that at most one copy is held.

        Raises:
            NonFiniteParameters: the one before was refused.
        """
        self.wait()
        self.check()
        self._start(self._write, state)

    def take_over(self) -> None:
        """Begin to tell which checkpoints there are: the rank that wrote them may have died before it could."""
        if self._thread is None or not self._thread.is_alive():  # else that is told in a moment anyway
            self._start(self._take_over)

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise NonFiniteParameters if a state was refused; costs nothing."""
        if self._refusal is not None:
            raise self._refusal

    def _start(self, work: Callable[..., None], *args: TrainState) -> None:
        self._thread = threading.Thread(target=work, args=args, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, state: TrainState) -> None:
        name = first_non_finite((name, state.model[name]) for name in self._parameters if name in state.model)
        if name is not None:
            self._refusal = NonFiniteParameters(state.step, name)
            return
        try:
            self._checkpoints.write(state)
        except Exception as error:  # whatever a file system raises: training goes on without this checkpoint
            self._failed(state.step, error)
        else:
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
