"""What the header of an IDX file says, where the server can read the files of a spec."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from lockstep.contract import idx
from lockstep.server.spec.rules import Site
from lockstep.v1.job_spec_pb2 import JobSpec

_HEADER = struct.Struct(">4s3I")  # what it is, images, height, width


class Images(NamedTuple):
    """The number of images in a file, and their size in pixels."""

    number: int
    height: int
    width: int


def training_images(spec: JobSpec, site: Site) -> Images | None:
    """Read what a resolved spec with IDX files trains on; None when that cannot be read here.

    16 bytes are read, and what is wrong with a file is left to the workers, who read all of it.
    """
    if not site.shares_files_with_workers:
        return None
    images = Path(spec.data.idx.root) / idx.FILES[0]
    try:
        for path, read in ((images, open), (images.with_name(f"{images.name}.gz"), gzip.open)):
            if path.is_file():
                with read(path, "rb") as file:
                    magic, *shape = _HEADER.unpack(file.read(_HEADER.size))
                return Images(*shape) if magic == idx.magic(3) else None
    except (OSError, EOFError, struct.error, zlib.error):
        pass
    return None
