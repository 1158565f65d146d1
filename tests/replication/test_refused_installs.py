"""A disk that refuses in the middle of an install: nothing is lost, the node goes on, and so does every database."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog

from litereplica.ltx.position import Position
from litereplica.store.meta import load_meta
from tests.replication.nodes import Node, content, same, until
from tests.replication.test_divergence import forget, kept, share

PAGES = 9000
"""More than there is room for page checksums in the first place."""


class Refusal:
    """One step of the install of app.db is refused while ``active``."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.active = True
        self.times = 0

    def __call__(self, operation: str, path: Path) -> int:
        if not self.active or self._step(operation, path) != self.step:
            return 0
        self.times += 1
        return errno.EIO if self.step == "a segment" else errno.ENOSPC

    def _step(self, operation: str, path: Path) -> str:
        if operation == "allocate" and path.name == "checksums":
            return "page checksums"
        if operation == "mkdir" and path.name.startswith("app.db@"):
            # Not the one for what is kept, which comes before.
            return "a folder" if load_meta(path.parent.parent / "db" / "app.db").installing else ""
        if operation == "rename" and path.suffix == ".ltx" and path.parent.parent.name == "diverged":
            return "a segment"
        if operation == "rename" and path.name == "meta" and path.parent.name == "app.db":
            return "the last meta file" if load_meta(path.parent).installing else ""
        return ""


async def part(primary: Node, replica: Node, how: str) -> None:
    """app.db of the replica gets a whole content with the next connection, other.db records."""
    primary.grow(4, "other.db")
    await share(primary, replica)
    if how == "goes back":
        await replica.begin_segment()
        replica.touch(5)
        primary.touch(7)
    else:
        primary.grow(PAGES, step=500)
        await forget(primary, 10)
    primary.touch(1, "other.db")


CASES = [
    ("goes back", "a folder"),
    ("goes back", "a segment"),
    ("goes back", "the last meta file"),
    ("fell behind", "page checksums"),
    ("fell behind", "a folder"),
    ("fell behind", "a segment"),
    ("fell behind", "the last meta file"),
]


@pytest.mark.parametrize(("how", "step"), CASES)
async def test_an_install_that_was_refused_once_needs_no_restart(
    primary: Node, replica: Node, make_node: Callable[..., Node], how: str, step: str
) -> None:
    await part(primary, replica, how)
    had = replica.position()
    refusal = replica.disk.refuses = Refusal(step)
    with structlog.testing.capture_logs() as lines:
        async with primary.serving(), replica.following(primary.port) as client:
            await until(lambda: refusal.times > 0)
            primary.touch(1)
            await until(lambda: refusal.times > 1)
            primary.touch(1, "other.db")
            await until(lambda: same(primary, replica, "other.db"))
            assert not same(primary, replica)
            refusal.active = False
            await until(lambda: same(primary, replica))
            primary.touch(3)
            await until(lambda: same(primary, replica))
            await until(lambda: client.caught_up)
    assert any("free some room" in str(line.get("reason")) for line in lines)
    assert content(primary.database()) == content(replica.database())
    assert replica.database().log.failure is None
    if how == "goes back":
        assert [(entry.end, entry.whole) for entry in kept(replica) if not entry.log_only] == [(had, True)]
    assert not load_meta(replica.database().directory).installing
    replica.close()
    again = make_node("b")
    assert same(primary, again)


@pytest.mark.parametrize("retention", [False, True])
@pytest.mark.parametrize(("how", "step"), CASES)
async def test_an_install_that_was_refused_is_completed_by_a_restart(
    primary: Node, replica: Node, make_node: Callable[..., Node], how: str, step: str, retention: bool
) -> None:
    await part(primary, replica, how)
    had = replica.position()
    refusal = replica.disk.refuses = Refusal(step)
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: refusal.times > 0)
        primary.touch(1)
        await until(lambda: refusal.times > 1)
        if retention:
            await replica.store.maintain(1e9, 1 << 40)
    replica.close()
    again = make_node("b")
    assert again.position() != Position.ZERO
    async with primary.serving(), again.following(primary.port):
        await until(lambda: same(primary, again))
        primary.touch(3)
        await until(lambda: same(primary, again))
    assert content(primary.database()) == content(again.database())
    if how == "goes back":
        assert [(entry.end, entry.whole) for entry in kept(again) if not entry.log_only] == [(had, True)]


async def test_retention_completes_an_install_that_was_refused(primary: Node, replica: Node) -> None:
    await part(primary, replica, "goes back")
    refusal = replica.disk.refuses = Refusal("a segment")
    async with primary.serving(), replica.following(primary.port):
        await until(lambda: refusal.times > 0)
    refusal.active = False
    assert replica.database().log.failure is not None
    await replica.store.maintain(1e9, 1 << 40)
    assert replica.database().log.failure is None
    assert not load_meta(replica.database().directory).installing
