"""The actor, as a launcher knows it: light, so that a launcher needs neither torch nor what comes with it."""

from typing import TYPE_CHECKING, Any

from lockstep.v1.launcher_pb2 import LauncherOptions

if TYPE_CHECKING:
    from lockstep.workers.calls import Description, Presence, Rest, Status


class Worker:
    """One worker process; what its methods do is told in `Assignments`.

    Args:
        options: what the operator has set; it says what a worker may hold while it is idle.
        cpus: that it holds; told to launchers that come later.
        gpus: likewise.
    """

    def __init__(self, options: LauncherOptions, cpus: float, gpus: float) -> None:
        from lockstep.workers.actor.assignments import Assignments  # in the process of the worker alone

        self._assignments = Assignments(options, cpus, gpus)

    def warm_up(self) -> "Rest":
        return self._assignments.warm_up()

    def rest(self, *arguments: Any) -> "Rest":
        return self._assignments.rest(*arguments)

    def begin(self, *arguments: Any) -> "Presence":
        return self._assignments.begin(*arguments)

    def form(self, *arguments: Any) -> None:
        self._assignments.form(*arguments)

    def dismiss(self, *arguments: Any) -> None:
        self._assignments.dismiss(*arguments)

    def stop(self, *arguments: Any) -> None:
        self._assignments.stop(*arguments)

    def status(self, *arguments: Any) -> "Status":
        return self._assignments.status(*arguments)

    def why_hung(self, *arguments: Any) -> str | None:
        return self._assignments.why_hung(*arguments)

    def describe(self, *arguments: Any) -> "Description":
        return self._assignments.describe(*arguments)
