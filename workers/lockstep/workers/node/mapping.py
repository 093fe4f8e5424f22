"""The files that tell NVIDIA's dcgm-exporter which jobs use which GPU: `--hpc-job-mapping-dir` there.

One file for each GPU, named by its number, with one job on each line. The exporter skips files whose name is no number,
and skips all of them when one goes away while it reads: the file of a GPU that nobody uses is emptied and not removed.
"""

import contextlib
import errno
import json
import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import structlog

MOST_BYTES = 1 << 20
"""More of a file is not read: ours are shorter."""

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
        present = _present(path)
        if present == content:
            return
        if present is None or (present and present not in self._written.get(name, [])):
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
                noted = json.loads(_present(self._note) or "{}")
                self._written = {str(name): [str(text) for text in texts] for name, texts in noted.items()}
            except (ValueError, AttributeError, TypeError):
                log.warning("the note of job mapping files is damaged", path=str(self._note))
        self._is_read = True


def _present(path: Path) -> str | None:
    """What is in a file; nothing where there is none. None: it is no regular file, which nobody here has written.

    Whoever may write in the folder can put a link or a pipe there: it is neither followed nor waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return os.read(descriptor, MOST_BYTES).decode(errors="replace")
    finally:
        os.close(descriptor)


def _replace(path: Path, content: str) -> None:
    draft = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "w") as file:  # noqa: PTH123  # a descriptor
        file.write(content)
    draft.replace(path)
