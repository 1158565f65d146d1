"""What a program is made of: one operation a line, as text that a person can read, shorten and run again.

    open c1 w0 a.db              worker w0 opens a database, made if it is missing
    run c1 INSERT INTO ...       one statement
    close c1
    backup c1 b.db 5             online backup into b.db, 5 pages a step
    remove a.db                  unlink the database and its side files
    copy a.db b.db               cp
    persist c1 1                 keep the WAL when the last connection closes (SQLITE_FCNTL_PERSIST_WAL)
    dump c1                      everything that this connection can read
    kill w0                      kill -9 an application; a new one takes its place
    killing c1 1500 UPDATE ...   kill -9 the application some microseconds after it began a transaction;
                                 `` ;; `` stands before the change of an attached database
    restart                      applications end, the node stops and starts
    stop                         the same, while applications have files open
    crash                        kill -9 of the primary's daemon between two statements
    crashing c1 1500 UPDATE ...  the same, some microseconds after a transaction began
    fault 1 node                 kill -9 of replica 1; ``applier`` of a node (0 is the primary)
    reader 1 w0 a.db             a reader on replica 1 begins a transaction; the one it had must have kept its snapshot
    burst WAL 30 7 0             all applications write at once, to a database of its own: mode, transactions, seed,
                                 after how many microseconds one is killed (0: none)
    compare                      every connection is closed, then everything is compared

Knows the text. Does not know what an operation does (running) nor when it makes sense (generating).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self

# How many words follow each verb; the last one may have spaces in it.
WORDS: Final = {
    "open": 3,
    "run": 2,
    "close": 1,
    "backup": 3,
    "remove": 1,
    "copy": 2,
    "persist": 2,
    "dump": 1,
    "kill": 1,
    "killing": 3,
    "restart": 0,
    "stop": 0,
    "crash": 0,
    "crashing": 3,
    "fault": 2,
    "reader": 3,
    "burst": 4,
    "compare": 0,
}


@dataclass(frozen=True, slots=True)
class Operation:
    """``verb`` is a key of WORDS; ``words`` are what it is done with."""

    verb: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.verb, *self.words))

    @classmethod
    def parse(cls, line: str) -> Self:
        verb, *rest = line.strip().split(" ", WORDS[line.strip().partition(" ")[0]])
        if len(rest) != WORDS[verb]:
            raise ValueError(f"{verb} takes {WORDS[verb]} words: {line!r}")
        return cls(verb, tuple(rest))


def parse_program(text: str) -> list[Operation]:
    """Empty lines and lines that begin with # are remarks."""
    lines = (line.strip() for line in text.splitlines())
    return [Operation.parse(line) for line in lines if line and not line.startswith("#")]


def program_text(program: Iterable[Operation]) -> str:
    return "".join(f"{each}\n" for each in program)
