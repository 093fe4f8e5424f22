"""The files that tell NVIDIA's dcgm-exporter which jobs use which GPU: `--hpc-job-mapping-dir` there.

One file for each GPU, named by its number, with one job on each line. The exporter skips files whose name is no number,
and skips all of them when one goes away while it reads: the file of a GPU that nobody uses is emptied and not removed.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import structlog

log = structlog.get_logger()


class JobMapping:
    """Writes these files. Those that others have written are left as they are.

    What was written is noted in a file beside them, since an agent may die and the next one shall clear up after it.

    Args:
        folder: where they are; made when it is missing.
        owner: of the files, such as the Ray namespace: several servers may share a node.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._note = folder / f".{owner}.json"
        self._is_read = False
        self._written: dict[str, list[str]] = {}
        self._refused: set[str] = set()

    def write(self, uses: Iterable[tuple[int, str]]) -> None:
        """Say who uses which GPU, as (number of the GPU, job); nobody uses the others.

        Raises:
            OSError: the folder cannot be written to.
        """
        jobs: dict[str, set[str]] = defaultdict(set)
        for index, job_id in uses:
            jobs[str(index)].add(job_id)
        if not self._is_read:
            self._read_note()
        for name in sorted({*self._written, *jobs}):
            self._write(name, "".join(f"{job_id}\n" for job_id in sorted(jobs[name])))

    def _write(self, name: str, content: str) -> None:
        path = self._folder / name
        try:
            present = path.read_text(errors="replace")
        except FileNotFoundError:
            present = ""
        if present == content:
            return
        if present and present not in self._written.get(name, []):
            if name not in self._refused:
                log.warning("a job mapping file is somebody else's", path=str(path))
            self._refused.add(name)
            return
        self._refused.discard(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        # Noted before, with what is there still: whenever this process dies, the file is one that the note knows.
        self._written[name] = [present, content]
        _replace(self._note, json.dumps(self._written))
        _replace(path, content)

    def _read_note(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            try:
                noted = json.loads(self._note.read_text())
                self._written = {str(name): [str(text) for text in texts] for name, texts in noted.items()}
            except (ValueError, AttributeError, TypeError):
                log.warning("the note of job mapping files is damaged", path=str(self._note))
        self._is_read = True


def _replace(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.draft")
    draft.write_text(content)
    draft.replace(path)
