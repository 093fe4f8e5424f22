"""What all tests share: where real data lies, and an end that leaves nothing behind."""

import inspect
import os
import signal
from pathlib import Path
from types import FrameType

import pytest

DATA = Path(os.environ.get("LOCKSTEP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


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
    """Have an asynchronous test that waits for what never comes fail soon: nothing in one takes long."""
    for item in items:
        is_asynchronous = isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.function)
        if is_asynchronous and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60))
