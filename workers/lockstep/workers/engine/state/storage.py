"""Where checkpoints lie: a folder on a disk, in which no link is followed, or what fsspec reaches.

Others may have the right to write beside a job's folder, or to put another one in its place. On a disk, everything
below the folder is therefore opened from its descriptor on, one component after another, without following links, and
only regular files are read. Where the folder itself lies may be named through links, as its user likes.
"""

import contextlib
import errno
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec

from lockstep.contract.checkpoints import LOCAL_SCHEMES

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking: the opening of a pipe would else wait for its other end.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class NotOurs(Exception):
    """A folder is not one that this job, or this user, has made; says which one and why."""


class Storage(Protocol):
    """A folder of folders of files.

    Attributes:
        is_local: a folder there becomes whole by being renamed.
    """

    is_local: bool

    def uri(self, folder: str) -> str:
        """Name a folder for others."""

    def names(self) -> list[str]:
        """What is in the place; nothing where nothing was ever written."""

    def has(self, folder: str, name: str) -> bool:
        """Whether a folder has a file of this name."""

    def read(self, folder: str, name: str, most_bytes: int) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read, is no regular file, or is longer than `most_bytes`.
        """

    def write(self, folder: str, name: str, parts: Iterator[memoryview]) -> None:
        """Write a file, which is on disk then."""

    def create(self, folder: str) -> None:
        """Make an empty folder."""

    def put_in_place(self, draft: str, folder: str) -> None:
        """Give a folder its name, on disk."""

    def remove(self, folder: str) -> None:
        """Remove a folder, as far as that is possible."""

    def remove_file(self, folder: str, name: str) -> None:
        """Remove a file of a folder."""


def storage_of(uri: str, *, is_owned: bool = False) -> Storage:
    """The place that a path or URI names.

    Args:
        uri: the path or URI.
        is_owned: its user has named it as it is: it may be a link, or belong to somebody else.

    Raises:
        ValueError: it names none.
    """
    path = path_of(uri)
    return Remote(uri) if path is None else Local(path, is_owned=is_owned)


def path_of(uri: str) -> str | None:
    """The path on this machine that a path or URI names, to the letter; None when it leads elsewhere."""
    for scheme in LOCAL_SCHEMES:
        uri = uri.removeprefix(scheme)
    return uri if uri.startswith("/") or "://" not in uri else None


def followed(uri: str) -> str:
    """A path or URI that a user has named, with all links that it leads through followed; where it has any."""
    path = path_of(uri) if uri else None
    return uri if path is None else str(Path(path).resolve())


class Local:
    """A folder on a disk; see `storage_of`."""

    is_local = True

    def __init__(self, path: str, *, is_owned: bool = False) -> None:
        self._path = str(Path(path).absolute())  # links stay, as the user wrote them; a last slash would follow one
        self._is_owned = is_owned
        self._flags = _FOLDER & ~os.O_NOFOLLOW if is_owned else _FOLDER

    def uri(self, folder: str) -> str:
        return f"file://{posixpath.join(self._path, folder)}"

    def names(self) -> list[str]:
        try:
            with self._opened() as root:
                return os.listdir(root)  # noqa: PTH208  # a descriptor
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has(self, folder: str, name: str) -> bool:
        with contextlib.suppress(OSError), self._opened(folder) as inside:
            return stat.S_ISREG(os.stat(name, dir_fd=inside, follow_symlinks=False).st_mode)
        return False

    def read(self, folder: str, name: str, most_bytes: int) -> bytes:
        with self._opened(folder) as inside:
            descriptor = os.open(name, _FILE, dir_fd=inside)
        return read_regular(descriptor, posixpath.join(self._path, folder, name), most_bytes)

    def write(self, folder: str, name: str, parts: Iterator[memoryview]) -> None:
        with self._opened(folder) as inside:
            descriptor = os.open(name, _NEW_FILE, 0o666, dir_fd=inside)
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def create(self, folder: str) -> None:
        Path(self._path).mkdir(parents=True, exist_ok=True)
        with self._opened() as root:
            os.mkdir(folder, dir_fd=root)

    def put_in_place(self, draft: str, folder: str) -> None:
        with self._opened(draft) as inside:
            os.fsync(inside)
        self.remove(folder)
        self.rename(draft, folder)
        with self._opened() as root:
            os.fsync(root)

    def rename(self, old: str, new: str) -> None:
        """Give a folder another name."""
        with self._opened() as root:
            os.rename(old, new, src_dir_fd=root, dst_dir_fd=root)

    def remove(self, folder: str) -> None:
        with contextlib.suppress(OSError), self._opened() as root:
            shutil.rmtree(folder, ignore_errors=True, dir_fd=root)

    def remove_file(self, folder: str, name: str) -> None:
        with self._opened(folder) as inside:
            os.unlink(name, dir_fd=inside)

    @contextlib.contextmanager
    def _opened(self, folder: str | None = None) -> Iterator[int]:
        """The descriptor of the folder, or of one in it.

        Raises:
            NotOurs: it is a link, or somebody else's.
        """
        with contextlib.ExitStack() as opened:
            try:
                root = os.open(self._path, self._flags)
            except NotADirectoryError as error:  # what Linux says of a link, too
                if Path(self._path).is_symlink():
                    raise NotOurs(f"{self._path} is a link; only a folder is taken: remove it") from error
                raise
            opened.callback(os.close, root)
            self._check_owner(root)
            if folder is not None:
                root = os.open(folder, _FOLDER, dir_fd=root)
                opened.callback(os.close, root)
            yield root

    def _check_owner(self, root: int) -> None:
        owner = os.fstat(root).st_uid
        if self._is_owned or owner == os.geteuid():
            return
        # A file system may give all files another owner than their writer, as NFS does with those of root.
        probe = f"probe-{secrets.token_hex(8)}"
        try:
            os.mkdir(probe, dir_fd=root)
            ours = os.stat(probe, dir_fd=root, follow_symlinks=False).st_uid
            os.rmdir(probe, dir_fd=root)
        except OSError:
            ours = os.geteuid()
        if owner != ours:
            raise NotOurs(f"{self._path} belongs to the user with number {owner}, and workers run as {ours}; remove it")
        self._is_owned = True


class Remote:
    """What fsspec reaches. It has no links, and only those that may write there can put anything there."""

    is_local = False

    def __init__(self, uri: str) -> None:
        if "::" in uri:
            raise ValueError(f'{uri} holds "::", which chains file systems; name a folder of one')
        self._files: Any
        self._files, self._root = fsspec.core.url_to_fs(uri)

    def uri(self, folder: str) -> str:
        return str(self._files.unstrip_protocol(self._path(folder)))

    def names(self) -> list[str]:
        """Not by a pattern, in which a bracket of the folder's own name would count."""
        self._files.invalidate_cache()
        try:
            return [posixpath.basename(str(path).rstrip("/")) for path in self._files.ls(self._root, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has(self, folder: str, name: str) -> bool:
        return bool(self._files.exists(self._path(folder, name)))

    def read(self, folder: str, name: str, most_bytes: int) -> bytes:
        with self._files.open(self._path(folder, name), "rb") as file:
            content: bytes = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise _too_long(self._path(folder, name), most_bytes)
        return content

    def write(self, folder: str, name: str, parts: Iterator[memoryview]) -> None:
        with self._files.open(self._path(folder, name), "wb") as file:
            for part in parts:
                file.write(part)

    def create(self, folder: str) -> None:
        self._files.makedirs(self._path(folder), exist_ok=True)

    def put_in_place(self, draft: str, folder: str) -> None:
        """The manifest is what makes it whole."""

    def remove(self, folder: str) -> None:
        for path in self._files.find(self._path(folder)):  # its own removal takes a path for a pattern
            self._files.rm_file(path)
        with contextlib.suppress(OSError):  # where a folder is but a part of names, there is none any more
            self._files.rmdir(self._path(folder))

    def remove_file(self, folder: str, name: str) -> None:
        self._files.rm_file(self._path(folder, name))

    def _path(self, *names: str) -> str:
        return posixpath.join(self._root, *names)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read it, through links if need be; a pipe or a device is not waited for.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    return _regular(os.open(path, _FILE & ~os.O_NOFOLLOW), str(path))


def read_regular(descriptor: int, name: str, most_bytes: int) -> bytes:
    """Read a file that is open, and close it.

    Raises:
        OSError: it cannot be read, is no regular file, or is longer than `most_bytes`.
    """
    with _regular(descriptor, name) as file:
        size_bytes = os.fstat(descriptor).st_size
        if size_bytes > most_bytes:
            raise _too_long(name, most_bytes)
        return file.read(size_bytes)


def _regular(descriptor: int, name: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", name)
    return open(descriptor, "rb")  # a descriptor, which the caller closes


def _too_long(name: str, most_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"is longer than the {most_bytes:,} bytes that it may have", name)
