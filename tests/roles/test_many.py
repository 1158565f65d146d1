"""Roles that change quickly on nodes with many databases that applications write, some of which come and go."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import pytest

from tests.roles.conftest import Direct
from tests.roles.directed import DirectedNode
from tests.support.sql import integrity, run_sql
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(240)

SEED: Final = 7
DATABASES: Final = 24
CHANGES: Final = 8
MODES: Final = ("WAL", "DELETE", "WAL", "TRUNCATE", "WAL", "PERSIST")
NAMES: Final = {f"{number}.db": MODES[number % len(MODES)] for number in range(DATABASES)}

# Writes to databases in turn, and opens anew what has failed, and now and then what has not.
_WRITER: Final = """
import random, sqlite3, sys, time
choose, paths, open_ones = random.Random(sys.argv[1]), sys.argv[2:], {}
print("up", flush=True)
while True:
    path = choose.choice(paths)
    try:
        if path not in open_ones:
            open_ones[path] = sqlite3.connect(path, timeout=2, isolation_level=None)
        open_ones[path].execute("INSERT INTO t (v) VALUES (randomblob(?))", (choose.choice((10, 10, 9000)),))
    except sqlite3.Error:
        failed = open_ones.pop(path, None)
        if failed is not None:
            failed.close()
    if choose.random() < 0.2 and path in open_ones:
        open_ones.pop(path).close()
    time.sleep(0.01)
"""


@contextmanager
def writers(*nodes: DirectedNode) -> Iterator[None]:
    made = []
    try:
        for number, node in enumerate(nodes):
            paths = [str(node.path(name)) for name in NAMES]
            command = [sys.executable, "-c", _WRITER, f"{SEED}-{number}", *paths]
            made.append(subprocess.Popen(command, stdout=subprocess.PIPE))
            stdout = made[-1].stdout
            assert stdout is not None
            assert stdout.readline() == b"up\n"
        yield
    finally:
        for each in made:
            each.kill()
            each.communicate()


def test_a_promotion_soon_after_a_demotion_is_not_refused(forwarding: Direct) -> None:
    choose = random.Random(SEED)
    old, new = forwarding("a"), forwarding("b")
    old.promote(1)
    new.follow(old)
    for name, mode in NAMES.items():
        run_sql(old.path(name), f"PRAGMA journal_mode={mode}; CREATE TABLE t (id INTEGER PRIMARY KEY, v);")
        new.wait_for(name, old.position(name))
    with writers(old, new):
        for epoch in range(2, CHANGES + 2):
            before = old.position("0.db")
            wait_until(partial(has_moved, old, before), "somebody writes", 30)
            old.demote()
            if choose.random() < 0.5:
                old, new = new, old
            # Asserts that it is not refused, and that there is a node to answer.
            old.promote(epoch)
            new.follow(old)
    for name in NAMES:
        wait_until(partial(are_level, old, new, name), f"both have {name}", 60)
        new.wait_for(name, old.position(name))
        assert content(new, name) == content(old, name)
        assert integrity(old.path(name)) == integrity(new.path(name)) == "ok"
    assert "Traceback" not in old.log + new.log


def has_moved(node: DirectedNode, before: str) -> bool:
    return node.position("0.db") != before


def are_level(one: DirectedNode, other: DirectedNode, name: str) -> bool:
    return one.position(name) == other.position(name)


def content(node: DirectedNode, name: str) -> list[tuple[object, ...]]:
    return run_sql(node.path(name), "SELECT id, hex(v) FROM t ORDER BY id", mode="ro")
