"""Files that users name, which others may have put there or changed: opened without being led elsewhere.

A checkpoint lies in ROOT/JOB/STEP. The root is what a user or the operator has named, through links if they like. The
workers have made what is below it, and whoever may write in the root can put something else there. So it is opened from
the root's descriptor on, one component after another, without following links, and only regular files are read.

Everything here blocks, and may hang with its file system: it is called by `FilePool`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from lockstep.contract.checkpoints import LOCAL_SCHEMES

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _ROOT | os.O_NOFOLLOW
# Not blocking: the opening of a pipe would else wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def local_path(uri: str) -> str | None:
    """Return the path on this machine that a path or URI names, to the letter; None when it leads elsewhere."""
    for scheme in LOCAL_SCHEMES:
        uri = uri.removeprefix(scheme)
    return uri if uri.startswith("/") else None


def open_file(step: Path, name: str) -> int:
    """Open a file of the folder of a checkpoint.

    Returns:
        Its descriptor.

    Raises:
        OSError: it is not there, cannot be read, or is no regular file; a link is none.
    """
    with open_folder(step.parent.parent, step.parent.name, step.name) as folder:
        return open_regular(name, folder)


def open_regular(name: str, folder: int) -> int:
    """Open a regular file of a folder that is open; see `open_file`."""
    descriptor = os.open(name, _FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", name)
    return descriptor


@contextlib.contextmanager
def open_folder(root: Path, *names: str) -> Iterator[int]:
    """Open a folder below `root`; none of `names` may be a link.

    Raises:
        OSError: it cannot be opened.
    """
    with contextlib.ExitStack() as opened:
        folder = os.open(root, _ROOT)
        opened.callback(os.close, folder)
        for name in names:
            folder = os.open(name, _FOLDER, dir_fd=folder)
            opened.callback(os.close, folder)
        yield folder


def make_folder(root: Path, *names: str) -> None:
    """Make folders below `root`, which is there; each of `names` is new, or a folder and no link.

    Raises:
        OSError: they cannot be made.
    """
    for number, name in enumerate(names):
        with open_folder(root, *names[:number]) as folder, contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
    with open_folder(root, *names):
        pass


def link_file(source: int, target: int, name: str) -> None:
    """Give a file of one folder to another one too, without its bytes where the file system can do that.

    Raises:
        OSError: it cannot be done, or it is no regular file.
    """
    descriptor = open_regular(name, source)
    with open(descriptor, "rb") as file:  # noqa: PTH123  # a descriptor
        try:
            os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:  # a file system without links, or somebody else's file
            with open(os.open(name, _NEW_FILE, 0o600, dir_fd=target), "wb") as copy:  # noqa: PTH123
                shutil.copyfileobj(file, copy)
            return
        if not os.path.samestat(os.stat(name, dir_fd=target, follow_symlinks=False), os.fstat(descriptor)):
            os.unlink(name, dir_fd=target)
            raise OSError(errno.ESTALE, "was replaced meanwhile", name)


def remove_folder(root: Path, job: str, name: str) -> None:
    """Remove a folder of a job's folder as far as that is possible, and then the job's if it is empty."""
    with contextlib.suppress(OSError):
        with open_folder(root, job) as folder:
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        with open_folder(root) as folder:
            os.rmdir(job, dir_fd=folder)  # the job has written checkpoints beside it
