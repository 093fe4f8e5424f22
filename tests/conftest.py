"""What all tests share: where real data lies, and an end that leaves nothing behind."""

import inspect
import os
import signal
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import pytest

SLOWEST_FIRST = ("integration", "distributed", "faults", "machines")
TESTS = Path(__file__).parent
DATA = Path(os.environ.get("LOCKSTEP_TEST_DATA", TESTS.parents[1] / "shared" / "data"))


def pytest_configure() -> None:
    """Have SIGTERM and Ctrl-C end a run once, so that fixtures stop all that they have started."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        for later in (signal.SIGINT, signal.SIGTERM):  # must not interrupt the clearing away
            signal.signal(later, lambda *_: None)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    # What is ignored stays so in every process that is started: under nohup no test could end one by SIGHUP.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder of the four MNIST files."""
    root = DATA / "mnist"
    if not root.is_dir():
        pytest.skip(f"MNIST is not at {root}; set LOCKSTEP_TEST_DATA to the folder that holds mnist/")
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have an asynchronous test that waits for what never comes fail soon, and what takes longest begin first."""
    for item in items:
        is_asynchronous = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function)
        if is_asynchronous and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))  # nothing in one takes long
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    folder = item.path.relative_to(TESTS).parts[0]
    return SLOWEST_FIRST.index(folder) if folder in SLOWEST_FIRST else len(SLOWEST_FIRST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have one process run all tests that share something: in `make test`, which has several."""
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatTheyShare(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = PurePath(nodeid.partition("::")[0])
            # A file shares what its fixtures have made, and the folders of integration one running server at a time.
            return str(file.parent if "integration" in file.parts else file)

    return ByWhatTheyShare(config, log)
