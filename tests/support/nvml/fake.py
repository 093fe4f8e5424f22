"""NVIDIA's driver, played: a library that the test builds and that the real Python package of NVML loads."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format

from lockstep.v1.telemetry_pb2 import GpuTelemetry, NodeTelemetry

SOURCE = Path(__file__).with_name("fake_nvml.c")
LIBRARY = "libnvidia-ml.so.1"
READER = """
import json, sys
from google.protobuf import json_format
from lockstep.v1.telemetry_pb2 import NodeTelemetry
from lockstep.workers.node.gpus import Gpus
time_s = 0.0
gpus = Gpus(lambda: time_s)
for line in sys.stdin:
    time_s = float(line)
    print(json.dumps(json_format.MessageToDict(NodeTelemetry(gpus=gpus.sample()))), flush=True, file=sys.__stderr__)
"""


class FakeDriver:
    """A driver whose GPUs do what the test says, and a process that measures them.

    Args:
        folder: for the library and for what it answers.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            pytest.skip("there is no C compiler to build the stand-in for NVML; install one, or set CC")
        folder.mkdir(parents=True, exist_ok=True)
        flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([compiler, *flags, "-o", folder / LIBRARY, SOURCE, "-lm"], check=True)
        self._folder = folder
        self._answers: dict[str, str] = {}
        self._reader: subprocess.Popen[str] | None = None
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have to load it."""
        return {"LD_LIBRARY_PATH": str(self._folder), "FAKE_NVML": str(self._folder / "answers")}

    def set(self, **answers: object) -> None:
        """Answer so from now on; see fake_nvml.c for the keys. None takes an answer back."""
        self._set(answers)

    def set_gpu(self, index: int, **answers: object) -> None:
        """Answer so for one GPU."""
        self._set({f"{index}.{key}": value for key, value in answers.items()})

    def _set(self, answers: dict[str, object]) -> None:
        self._answers |= {key: str(value) for key, value in answers.items()}
        self._answers = {key: value for key, value in self._answers.items() if value != "None"}
        self._write()

    def _write(self) -> None:
        draft = self._folder / "answers.draft"
        draft.write_text("".join(f"{key} {value}\n" for key, value in self._answers.items()))
        draft.replace(self._folder / "answers")

    def sample(self, time_s: float = 0.0) -> list[GpuTelemetry]:
        """Measure the GPUs at some time, in a process that stays from one sample to the next."""
        if self._reader is None:
            self._reader = subprocess.Popen(
                [sys.executable, "-c", READER],
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._reader.stdin is not None
        assert self._reader.stderr is not None
        self._reader.stdin.write(f"{time_s}\n")
        self._reader.stdin.flush()
        line = self._reader.stderr.readline()
        try:
            return list(json_format.ParseDict(json.loads(line), NodeTelemetry()).gpus)
        except ValueError as error:
            self._reader.kill()
            raise AssertionError(line + self._reader.stderr.read()) from error

    def close(self) -> None:
        """End the process that measures."""
        if self._reader is not None:
            self._reader.kill()
            self._reader.communicate()
