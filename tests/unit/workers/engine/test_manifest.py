"""The manifest of a checkpoint: valid JSON, and no damage to it goes unseen."""

import json
import math
from typing import Any

import pytest

from lockstep.workers.engine.state.manifest import Damaged, decode, encode

CONTENT: Any = {  # a part of a `Manifest`
    "step": 40,
    "files": [{"name": "model.safetensors", "size_bytes": 3, "sha256": "00"}],
    "facts": {"job_id": "job-1"},
    "notes": {
        "position": [40, True, False],
        "window": [[0.1, 1e-300, 3.0], 4],
        "gradient_norm": math.nan,
        "final_metrics": {"NaN": math.inf, "val_loss": -math.inf},
        "points": [["float", 1, 0.5, math.nan]],
    },
}


def refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, NaN to NaN too."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_numbers_that_json_has_none_for_come_back_and_any_parser_takes_the_file() -> None:
    data = encode(CONTENT)
    json.loads(data, parse_constant=refuse)
    assert same(decode(data), {"format": 2} | CONTENT)


def test_each_flipped_bit_is_seen_or_changes_nothing() -> None:
    data = encode(CONTENT)
    right, seen = decode(data), 0
    for position in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        try:
            assert same(decode(bytes(flipped)), right), flipped
        except Damaged:
            seen += 1
    assert seen > 6 * len(data)


def test_what_json_writes_otherwise_than_python_has_it_is_no_damage() -> None:
    content = CONTENT | {"notes": {10: (1, 2), 9: None}}
    assert decode(encode(content))["notes"] == {"10": [1, 2], "9": None}


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"[" * 100_000, b"\xff", encode(CONTENT)[:-1]])
def test_what_is_no_manifest_is_damaged(data: bytes) -> None:
    with pytest.raises(Damaged, match=r"manifest\.json cannot be understood"):
        decode(data)


def test_one_of_earlier_times_is_read_as_ever() -> None:
    assert same(decode(json.dumps({"format": 1} | CONTENT).encode()), {"format": 1} | CONTENT)


def test_one_of_later_times_is_refused_by_its_format() -> None:
    with pytest.raises(Damaged, match="is of format 3, which this version does not know"):
        decode(json.dumps({"format": 3} | CONTENT).encode())
