"""What a node tells its listeners of locks, and of transactions that were not forwarded."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from litereplica.node.events import Events
from litereplica.node.halting import HaltChange
from litereplica.store.disk import Disk
from litereplica.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path, Disk(), "a", "none")
    yield opened
    opened.close()


@pytest.fixture
def events(store: Store) -> Events:
    return Events(store, lambda: "a", lambda: True, lambda _name: True)


def heard(channel: "trio.MemoryReceiveChannel[dict[str, Any]]") -> list[dict[str, Any]]:
    found = []
    while channel.statistics().current_buffer_used:
        found.append(channel.receive_nowait())
    return found


def test_a_lock_is_told_when_it_begins_and_when_it_ends(events: Events) -> None:
    channel = events.listen()
    assert channel is not None
    events.halted(HaltChange("app.db", "b", ended=False))
    events.halted(HaltChange("app.db", "b", ended=True, reason="the link is cut"))
    assert heard(channel)[1:] == [
        {"type": "halt", "db": "app.db", "data": {"node": "b", "state": "held", "reason": ""}},
        {"type": "halt", "db": "app.db", "data": {"node": "b", "state": "ended", "reason": "the link is cut"}},
    ]


def test_an_application_that_is_refused_again_and_again_is_one_event_a_second(events: Events) -> None:
    channel = events.listen()
    assert channel is not None
    for _ in range(1000):
        events.not_forwarded("app.db", "stale", "others were first")
    events.not_forwarded("other.db", "unknown", "no answer")
    told = heard(channel)[1:]
    assert [(event["type"], event["db"]) for event in told] == [("forward", "app.db"), ("forward", "other.db")]
    assert told[0]["data"] == {"outcome": "stale", "reason": "others were first", "untold": 0}


def test_what_was_not_told_is_counted_in_the_next(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    channel = events.listen()
    assert channel is not None
    for _ in range(3):
        events.not_forwarded("app.db", "stale", "others were first")
    now += 1.0
    events.not_forwarded("app.db", "busy", "locked")
    assert [event["data"]["untold"] for event in heard(channel)[1:]] == [0, 2]


def test_every_event_has_data_as_litefs_s_clients_need_it(events: Events) -> None:
    channel = events.listen()
    assert channel is not None
    events.halted(HaltChange("app.db", "b", ended=False))
    events.not_forwarded("app.db", "busy", "locked")
    assert all(isinstance(event["data"], dict) for event in heard(channel))


def test_a_listener_that_is_gone_keeps_nothing_from_those_after_it(store: Store, events: Events) -> None:
    database = store.create("app.db")
    told = []
    channel = events.listen()
    assert channel is not None
    store.listeners.append(lambda each: told.append(each.name))
    channel.close()
    database.applied = 1
    database.changed()
    assert told == ["app.db"]
    assert events.listen() is not None


def test_who_wants_no_transactions_hears_of_everything_else_and_commits_cost_nothing(
    store: Store, events: Events
) -> None:
    channel = events.listen(transactions=False)
    assert channel is not None
    assert not store.listeners
    events.primary_changed("b", "b has the lease", 7, leads=False)
    assert [event["type"] for event in heard(channel)] == ["init", "primaryChange"]


def test_a_node_that_has_said_that_it_is_no_primary_any_more_does_not_say_that_it_is(events: Events) -> None:
    """It says so before it is none, and nothing follows: a proxy would send writes to its own application for ever."""
    early = events.listen(transactions=False)
    assert early is not None
    events.primary_changed("b", "b has taken the lease", 7, leads=False)
    late = events.listen(transactions=False)
    assert late is not None
    told = [event["data"] for event in (*heard(early)[1:], *heard(late))]
    assert [(data["isPrimary"], data["hostname"]) for data in told] == [(False, "b"), (False, "b")]
