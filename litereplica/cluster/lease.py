"""The lease and the members as values: what every node reads before it decides.

Knows what is written beside the lease and which times fit together. Does not know where it is kept (lease/), what a
node does about it (role.py), or the time: instants are arguments, in seconds on one node's monotonic clock.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final
from zlib import crc32

PROTOCOL: Final = 1
"""Version of what nodes write for each other; a node that finds a newer one refuses to take part."""
RENEWALS_IN_TTL: Final = 3
"""Two renewals may fail or be late, and the lease is still held."""
MARGIN_SHARE: Final = 0.1
"""Part of the ttl that its holder gives up. Clocks of different machines run at rates that differ by 0.05 % at worst
(quartz under NTP's slewing: 500 ppm), 2.5 ms in a ttl of 5 s; the rest is for the time between the last look at the
clock and the answer that the kernel gets, on a machine that is busy."""
SHORTEST_MARGIN_S: Final = 0.1
SHORTEST_TTL_S: Final = 1.0
LONGEST_TTL_S: Final = 300.0
LEAST_LEAP: Final = 1000
"""More epochs than may have come and gone without anybody who hears of the store again."""
LEAPS: Final = 65_536
"""So many lengths, by which two leaps from the same epoch seldom meet."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A node as others reach it; ``instance`` is unique to one start of its process."""

    node: str
    instance: str
    http: str
    replication: str


@dataclass(frozen=True, slots=True)
class Holding:
    """The lease, as it was read or written: who has it.

    ``epoch``: 0 between taking it and saying so. ``counter`` rises with each renewal. ``index``: the version of the
    written value that this is, as compare-and-set takes it. ``offered_to``: the node that may take it at once.
    ``ttl_s``: what the holder promises; whoever wants to take it over waits that long. ``counts_on``: the nodes whose
    promises to stand back let the holder go on when it cannot renew; nobody else may take it over when it lapses.
    Empty: it stops then, and anybody may.
    """

    holder: Endpoint
    epoch: int
    counter: int
    ttl_s: float
    index: int
    offered_to: str = ""
    counts_on: tuple[str, ...] = ()


FORGOTTEN: Final = Endpoint("", "", "", "")
"""Holds a lease of which only the epoch is known: perhaps nobody, perhaps a node that lives."""


@dataclass(frozen=True, slots=True)
class View:
    """The lease at one instant: ``holding`` None when nobody has it. ``index`` differs between any two states.

    ``gone``: ``holding`` is what was there, and it went without being released (its session ended, somebody deleted it,
    the store was wiped or has an older one again). Another node may have taken it since, in what the store has
    forgotten: only time tells. Its holder is FORGOTTEN where nobody remembers one.
    """

    holding: Holding | None
    index: int
    gone: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a node is, over all its databases.

    ``epoch``: of its newest record. ``total``: the sum of its TXIDs, without what was dropped in earlier epochs.
    ``whole``: no database is in the middle of a snapshot, and nothing is known to be damaged: it may be promoted.
    ``parted``: some database here may be of another history than the newest records of others are: as primary, this
    node would bring lost transactions back, and what was acknowledged since would be lost in their place. ``emptied``:
    nothing is logged here, and the cluster has had transactions: as primary, this node would have all others drop what
    they have.
    """

    epoch: int
    total: int
    whole: bool = True
    parted: bool = False
    emptied: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """What a node publishes of itself. ``vacancy``: the View.index for which it did so, 0 at other times."""

    endpoint: Endpoint
    standing: Standing
    candidate: bool
    priority: int
    vacancy: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Reign:
    """One entry of the history of primaries: who began to be primary, when (ms since 1970), why, and from where."""

    epoch: int
    node: str
    timestamp_ms: int
    reason: str
    positions: dict[str, str]
    """Database → ``TXID/checksum`` at the beginning; at most the 100 first by name.

    Where there was none, from a moment after the first transactions of this reign.
    """


@dataclass(frozen=True, slots=True)
class Timing:
    """``ttl_s`` and what follows from it."""

    ttl_s: float

    @property
    def margin_s(self) -> float:
        """How much earlier the holder stops than others may begin."""
        return max(SHORTEST_MARGIN_S, self.ttl_s * MARGIN_SHARE)

    @property
    def renew_every_s(self) -> float:
        """From one renewal to the next."""
        return self.ttl_s / RENEWALS_IN_TTL

    def accepts_until(self, sent_at: float) -> float:
        """Until when commits are accepted after a renewal that was sent at ``sent_at`` and succeeded."""
        return sent_at + self.ttl_s - self.margin_s


def has_had_transactions(history: Iterable[Reign]) -> bool:
    """Whether the primary that is last in the history had any, so that somebody may have them still.

    Not one before it: who began with nothing has had everybody give up what was there.
    """
    newest = max(history, key=lambda each: each.epoch, default=None)
    return newest is not None and bool(newest.positions)


def forgotten(epoch: int, ttl_s: float) -> Holding:
    """What to take a store for that has forgotten everything, on a node that knows ``epoch`` and nobody who has it.

    Not vacant: another node may have taken the lease since this one heard of it last.
    """
    return Holding(FORGOTTEN, epoch, 0, ttl_s, 0)


def epochs_forgotten(instance: str) -> int:
    """How far to leap where the store has forgotten who had the lease: nobody here may know the newest epochs.

    Each start of a node has a length of its own, of LEAPS.
    """
    return LEAST_LEAP + crc32(instance.encode()) % LEAPS


def next_epoch(index: int, *seen: int) -> int:
    """The epoch of a lease that was taken as version ``index``, where these epochs have been seen, by whomever.

    Not the version alone: a lease's store that was wiped begins anew, and epochs must not.
    """
    return max(index, *(each + 1 for each in seen))
