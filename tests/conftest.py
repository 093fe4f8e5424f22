"""What all tests share: where real data lies."""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("LOCKSTEP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder of the four MNIST files."""
    root = DATA / "mnist"
    if not root.is_dir():
        pytest.skip(f"MNIST is not at {root}; set LOCKSTEP_TEST_DATA to the folder that holds mnist/")
    return root
