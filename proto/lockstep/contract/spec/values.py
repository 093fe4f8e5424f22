"""Values of a spec: what texts can be, and how a value is written into a message."""

from __future__ import annotations

import json
import math
import re
from typing import Any

STORES = {
    "file": "",
    "local": "",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hdfs": "pyarrow",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}
"""What can be written to and outlives its writer, with the package that reaches it. fsspec knows more: file systems in
the memory of one process, and such as can only be read."""

FOLDER_LIMITS = (
    f"an absolute path, or a URI of {', '.join(STORES)}, of at most 4,096 characters without control characters, and "
    'without "::" in a URI'
)

_MAX_SHOWN_LENGTH = 80
# Unicode's categories Cc, Zl and Zp.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def has_controls(text: str) -> bool:
    """Whether there is a control character in it, or one that breaks a line as some of them do."""
    return _CONTROLS.search(text) is not None


def is_path(value: str) -> bool:
    """Whether it can be a path: not too long, and without control characters."""
    return len(value) <= 4096 and not has_controls(value)


def is_folder(value: str) -> bool:
    """Say whether it is an absolute path, or a URI of a store, wherever it leads."""
    if not is_path(value):
        return False
    if value.startswith("/"):
        return True
    # A path on this machine without the slash would start at whatever the working directory is.
    scheme, separator, rest = value.partition("://")
    if scheme in ("file", "local") and not rest.startswith("/"):
        return False
    return bool(separator) and scheme in STORES and "::" not in rest and rest.strip("/") != ""


def show(value: Any) -> str:
    """Write a value for a message: short, and with nothing unprintable."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return ("-" if value < 0 else "") + "infinity" if math.isinf(value) else f"{value:.15g}"
    if isinstance(value, int):
        return str(value)
    text = json.dumps(str(value), ensure_ascii=True)
    return text if len(text) <= _MAX_SHOWN_LENGTH else f"{text[: _MAX_SHOWN_LENGTH - 4]}...{text[-1]}"
