"""The one tree of errors.

Knows the three outcomes that are not "done": a rule said no, the outcome is unknown, bytes break their format.
Does not know how an edge shows them: each edge (FUSE errno, HTTP status, CLI exit code) translates once.
"""

from typing import ClassVar


class LitereplicaError(Exception):
    """Base of every error that this program raises on purpose.

    ``message`` says what happened and what to do, in one line, for a person.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Refused(LitereplicaError):
    """A rule says no; asking again without a change gives the same answer."""

    exit_code = 1


class Misconfigured(Refused):
    """The command line or the configuration is wrong."""

    exit_code = 2


class Unavailable(LitereplicaError):
    """No answer, or the outcome is unknown; it is safe to ask again."""

    exit_code = 3


class Corrupt(LitereplicaError):
    """Bytes break their format; nothing was changed and nothing was deleted."""

    exit_code = 4
