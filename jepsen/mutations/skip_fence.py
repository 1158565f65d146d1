"""skip-fence: a primary whose lease is over goes on accepting commits.

Milliseconds are taken for seconds when the instant is computed until which a renewal allows commits: neither the mount
nor whoever keeps the lease sees that it is over, until somebody tells the node that another is primary.
"""

from collections.abc import Callable
from typing import Final

from jepsen.mutations.replacing import replace_function
from litereplica.cluster.lease import Timing

TOO_LONG: Final = 1000


def put_in_place() -> None:
    replace_function(Timing, "accepts_until", _accepts_until)


def _accepts_until(right: Callable[[Timing, float], float], self: Timing, sent_at: float) -> float:
    return sent_at + TOO_LONG * (right(self, sent_at) - sent_at)
