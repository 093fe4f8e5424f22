"""Page sizes, page tokens and cursors.

A token says where to go on, and a digest of what it belongs to: a token under other filters is refused, since the pages
would neither overlap nor be complete.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Any

from lockstep.server.errors import InvalidRequest


def page_size(asked: int, *, default: int, most: int) -> int:
    """Return how many items a page has.

    Raises:
        InvalidRequest: it is negative or too large.
    """
    if not 0 <= asked <= most:
        raise InvalidRequest.of("page_size", f"is {asked}; allowed: 1 to {most:,}, or 0 for {default:,}")
    return asked or default


def _digest(scope: object) -> str:
    return hashlib.sha256(json.dumps(scope, sort_keys=True).encode()).hexdigest()[:12]


def make_token(position: list[Any], scope: object) -> str:
    """Write a position as an opaque token that is good within one scope only."""
    return base64.urlsafe_b64encode(json.dumps([_digest(scope), *position]).encode()).decode().rstrip("=")


def read_token(token: str, field: str, scope: object, types: tuple[type, ...]) -> list[Any] | None:
    """Read a position back; None for an empty token.

    Raises:
        InvalidRequest: it is no token of ours, or one of another scope.
    """
    if not token:
        return None
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        digest, *position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        json.dumps(position, ensure_ascii=False).encode()  # JSON can write characters that no text has
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise InvalidRequest.of(field, "is not one that this server gave out; leave it empty to begin") from error
    if [type(part) for part in position] != list(types) or any(
        isinstance(part, int) and not 0 <= part < 2**63 for part in position
    ):
        raise InvalidRequest.of(field, "is not one that this server gave out; leave it empty to begin")
    if digest != _digest(scope):
        raise InvalidRequest.of(field, "belongs to a call with other filters; keep the filters, or leave it empty")
    return list(position)


def not_negative(value: int, field: str) -> int:
    """Return a number that must not be negative.

    Raises:
        InvalidRequest: it is.
    """
    if value < 0:
        raise InvalidRequest.of(field, f"is {value}; allowed: 0 or greater")
    return value
