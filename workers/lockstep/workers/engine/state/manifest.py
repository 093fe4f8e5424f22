"""The manifest of a checkpoint: JSON that any parser takes, with a digest over itself."""

import hashlib
import json
import math
from typing import Any, cast

from lockstep.contract.checkpoints import Manifest

FORMAT = 2
"""Format 1, of earlier times, has no digest over itself, and NaN as a bare word."""
_DIGEST = "sha256"
_NUMBER = "float"
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Damaged(Exception):
    """A checkpoint is not what was written; says what is wrong with which file."""


def encode(manifest: Manifest) -> bytes:
    """Write a manifest.

    What JSON has no number for becomes an object: {"float": "NaN"}. The last entry, "sha256", is the digest over all
    others in the form of `_canonical`.
    """
    content = json.loads(json.dumps({"format": FORMAT} | _without_words(manifest), allow_nan=False))
    return json.dumps(content | {_DIGEST: _digest_of(content)}, indent=1, allow_nan=False).encode()


def decode(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        Damaged: it is not what was written.
    """
    try:
        content: dict[str, Any] = json.loads(data)
        if not isinstance(content, dict) or "files" not in content:
            raise ValueError("it is no manifest")
    except (ValueError, RecursionError) as error:
        raise Damaged("manifest.json cannot be understood") from error
    digest = content.pop(_DIGEST, None)
    if content.get("format") not in (1, FORMAT):
        raise Damaged(f"manifest.json is of format {content.get('format')}, which this version does not know")
    if content["format"] != 1 and digest != _digest_of(content):
        raise Damaged("the bytes of manifest.json have changed")
    return cast(Manifest, _with_words(content))


def json_number(value: float) -> float | str:
    """A number as JSON can say it: the form of protobuf has text for those that JSON has not."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _digest_of(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_words(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {_NUMBER: json_number(value)}
        case dict():
            return {key: _without_words(item) for key, item in value.items()}
        case list() | tuple():
            return [_without_words(item) for item in value]
        case _:
            return value


def _with_words(value: Any) -> Any:
    match value:
        case {"float": str(word)} if len(value) == 1 and word in _WORDS:
            return _WORDS[word]
        case dict():
            return {key: _with_words(item) for key, item in value.items()}
        case list():
            return [_with_words(item) for item in value]
        case _:
            return value
