"""The cookie in which a client carries how far it has come.

Knows its text: ``NAME=TXID/CHECKSUM`` for each database, percent-encoded names, joined by ``&``. Pure. Does not know
whether a position exists.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final
from urllib.parse import quote, unquote

from litereplica.ltx.position import Position

# Whoever sends more was not given it by us.
LONGEST_BYTES: Final = 4096
_ITEM: Final = re.compile(r"([^=&;\s]{1,1024})=([0-9a-f]{16}/[0-9a-f]{16})")

Positions = dict[str, Position]


def parse(headers: Collection[str], name: str, databases: Collection[str]) -> Positions:
    """Positions of ``databases`` in ``Cookie`` headers; what is not ours or not whole is left out."""
    found: Positions = {}
    for header in headers:
        for pair in header.split(";"):
            key, _, value = pair.strip().partition("=")
            if key != name or len(value) > LONGEST_BYTES:
                continue
            for item in value.strip('"').split("&"):
                if match := _ITEM.fullmatch(item):
                    database = unquote(match[1])
                    if database in databases:
                        found[database] = Position.parse(match[2])
    return found


def write(name: str, positions: Mapping[str, Position], age_s: float) -> str:
    """The value of a ``Set-Cookie`` header. ``age_s`` 0: as long as the browser runs."""
    value = "&".join(f"{quote(database, safe='')}={at}" for database, at in sorted(positions.items()))
    age = f"; Max-Age={int(age_s)}" if age_s else ""
    # No script has a use for it, and a form of another site does not read what this one wrote.
    return f"{name}={value}; Path=/{age}; HttpOnly; SameSite=Lax"
