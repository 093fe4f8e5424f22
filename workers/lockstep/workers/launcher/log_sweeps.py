"""When the launcher has a node swept: some time after it has found the node or lost a worker there."""

import threading
from collections.abc import Callable, Iterable
from typing import Any

import ray
import structlog
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lockstep.workers.failures import in_our_words, is_with_node
from lockstep.workers.logs.spool import folder_of
from lockstep.workers.logs.sweep import sweep

DELAYS_S = (2.0, 30.0)
"""When a node is swept: other workers may be lost in the same moment, and those that are left want to go on first; and
once more, since a process may take long to die."""

_SWEEP: Any = ray.remote(sweep)
"""Made once: each one would stay in Ray's table of functions for ever."""

log = structlog.get_logger()


class LogSweeps:
    """Sweeps nodes by short tasks of Ray on them. Nothing depends on them: what fails is logged.

    Args:
        namespace: of this server's actors.
        start: begins a sweep of a node: by default a task there.
    """

    def __init__(self, namespace: str, start: "Callable[[str, str], Any] | None" = None) -> None:
        self._namespace = namespace
        self._start = start or self._start_task
        self._coordinator_address = ""
        self._lock = threading.Lock()
        self._seen: set[str] = set()
        self._living: set[str] = set()
        self._gone: frozenset[str] = frozenset()
        self._waiting: set[tuple[str, float]] = set()

    def begin(self, coordinator_address: str) -> None:
        """Say where the lines go; nothing is swept before this."""
        self._coordinator_address = coordinator_address

    def found(self, node_ids: Iterable[str]) -> None:
        """Sweep each of the living nodes once; an earlier server's crash may have left something there."""
        living = list(node_ids)
        with self._lock:
            self._living = set(living)
        for node_id in living:
            if self._coordinator_address and node_id not in self._seen:
                self._seen.add(node_id)
                self.soon(node_id)

    def soon(self, node_id: str) -> None:
        """Sweep a node in a while: a worker there is gone."""
        with self._lock:
            delays_s = [delay_s for delay_s in DELAYS_S if (node_id, delay_s) not in self._waiting]
            if not self._coordinator_address:
                return
            self._waiting.update((node_id, delay_s) for delay_s in delays_s)
        for delay_s in delays_s:
            timer = threading.Timer(delay_s, self._sweep, (node_id, delay_s))
            timer.daemon = True
            timer.start()

    def _sweep(self, node_id: str, delay_s: float) -> None:
        with self._lock:
            self._waiting.discard((node_id, delay_s))
            is_gone = node_id in self._seen and node_id not in self._living
        if is_gone:
            self._is_gone(node_id)
            return
        try:
            self._start(node_id, self._coordinator_address).add_done_callback(lambda task: self._tell(node_id, task))
        except Exception as error:  # whatever Ray raises when it is away
            log.warning("a node could not be swept for logs", node_id=node_id, error=in_our_words(error))

    def _tell(self, node_id: str, task: Any) -> None:
        error = task.exception()
        if error is not None and is_with_node(error):
            self._is_gone(node_id)
        elif error is not None:
            log.warning("a node could not be swept for logs", node_id=node_id, error=in_our_words(error))
        elif task.result():
            log.info("delivered what dead workers had printed", node_id=node_id, workers=task.result())

    def _is_gone(self, node_id: str) -> None:
        """Say it once: nodes never come back under the id that they had."""
        with self._lock:
            is_known, self._gone = node_id in self._gone, self._gone | {node_id}
        if not is_known:
            log.warning("the node is gone, and the logs of its workers with it", node_id=node_id)

    def _start_task(self, node_id: str, coordinator_address: str) -> Any:
        task = _SWEEP.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        )
        return task.remote(folder_of(self._namespace), coordinator_address).future()
