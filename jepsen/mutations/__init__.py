"""Planted bugs: each replaces one decision of the program by a wrong one, so that a test can tell whether it is found.

The program knows nothing of them. ``jepsen.cluster.daemon --mutation NAME`` puts one in place before it is a node, and
so does the process of its applier (applier.py), which is told by ``VARIABLE``. One file each; ``put_in_place`` of the
file replaces what the bug is about, and fails when that is no longer there (replacing.py). Which run finds which of
them stands in jepsen/mutants.py.
"""

import os
from importlib import import_module
from typing import Final

from jepsen.mutations.replacing import replace_value
from litereplica.applier import process

VARIABLE: Final = "JEPSEN_MUTATION"
"""In the environment of a node and of its children: the name of the mutation."""
APPLIER: Final = "jepsen.mutations.applier"
NAMES: Final = (
    "skip-fence",
    "ignore-epoch",
    "acknowledge-before-log",
    "apply-out-of-order",
    "forget-page",
    "accept-stale",
    "answer-wait-early",
    "forget-diverged",
)


def put_in_place(name: str) -> None:
    """From here on this process has the bug ``name``. Raises Gone, KeyError when there is none of this name."""
    if name not in NAMES:
        raise KeyError(name)
    import_module(f"jepsen.mutations.{name.replace('-', '_')}").put_in_place()


def put_in_node(name: str) -> None:
    """The same for a daemon and everything that it starts."""
    put_in_place(name)
    replace_value(process, "MODULE", APPLIER)
    os.environ[VARIABLE] = name
