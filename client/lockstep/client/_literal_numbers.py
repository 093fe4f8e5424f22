"""Numbers that remember how they were written, so that a message can repeat them: 3.10 is not 3.1 to a reader."""

from __future__ import annotations

from typing import Self

_MOST_DIGITS = 400


class WrittenInt(int):
    """Decimal digits, which may be grouped by underscores.

    Raises:
        ValueError: there are far too many for any field.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        if len(text) > _MOST_DIGITS:
            raise ValueError(f"a number has {len(text)} digits")
        number = super().__new__(cls, text.replace("_", ""))
        number.text = text
        return number


class WrittenFloat(float):
    """A number as YAML 1.2 or JSON writes it."""

    text: str

    def __new__(cls, text: str) -> Self:
        number = super().__new__(cls, text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        number.text = text
        return number
