"""Tables for people.

Knows columns and colours. Does not know what is in them.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final

COLOURS: Final = {"green": "\x1b[32m", "yellow": "\x1b[33m", "red": "\x1b[31m", "bold": "\x1b[1m"}
RESET: Final = "\x1b[0m"


def colour_wanted() -> bool:
    """True on a terminal, unless NO_COLOR says otherwise (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """Colour a text when standard output is a terminal."""
    return f"{COLOURS[colour]}{text}{RESET}" if colour_wanted() else text


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table with aligned columns; numbers to the right, the header in bold on a terminal."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(header), *(len(row[i]) for row in cells)) for i, header in enumerate(headers)] if rows else []
    right = [all(type(row[i]) in {int, float} for row in rows) for i in range(len(widths))]

    def line(texts: Sequence[str]) -> str:
        aligned = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(texts, widths, right, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return [paint(line(headers), "bold"), *(line(row) for row in cells)] if rows else []


def cell(value: object) -> str:
    """A value as a person reads it; what a node answers, without what a terminal would obey."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    return text if text.isprintable() else ascii(text)
