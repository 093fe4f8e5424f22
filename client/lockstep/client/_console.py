"""Where tables and bars are drawn: a console of rich that shows nothing unsafe, and does not wrap what is no screen."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lockstep.client._printable import printable, write

# Columns where there is no screen: nothing is wrapped or cut for one.
_UNLIMITED = 100_000


class SafeConsole(Console):
    """Standard output or standard error: colours on a terminal unless NO_COLOR is set, and never an escape of a text.

    Where there is no terminal, lines are as long as they need to be, unless COLUMNS says how wide the reader is, and
    end without blanks.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(file=sys.stderr if stderr else sys.stdout, highlight=False, markup=False, emoji=False)
        if not self.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
            self.width = _UNLIMITED

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render, with every text made printable."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; off a terminal the blanks at the ends of lines are left out."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()), cast(TextIO, self.file))
