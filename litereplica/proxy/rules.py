"""What a request is: to be passed through, a read, or a write.

Knows methods and the patterns of the configuration. Pure. Does not know where each kind goes (proxy.handler).
"""

from enum import Enum, auto
from typing import Final

from litereplica.config import ProxySettings
from litereplica.config.proxy import compile_pattern

READING_METHODS: Final = frozenset({"GET", "HEAD"})


class Kind(Enum):
    """Of a request."""

    PASS = auto()
    READ = auto()
    WRITE = auto()


class Rules:
    """The patterns, compiled once."""

    def __init__(self, settings: ProxySettings) -> None:
        rules = settings.rules
        lists = ((Kind.PASS, rules.passthrough), (Kind.WRITE, rules.always_forward), (Kind.READ, rules.read_only))
        self._patterns = [(compile_pattern(text), kind) for kind, texts in lists for text in texts]

    def kind(self, method: str, path: str) -> Kind:
        """The first pattern that matches decides, else the method. ``path``: decoded, without its query."""
        for pattern, kind in self._patterns:
            if pattern.search(path):
                return kind
        return Kind.READ if method in READING_METHODS else Kind.WRITE
