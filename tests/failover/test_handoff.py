"""Planned changes of the primary: writers wait a moment, and no commit that was under way fails."""

import time

import pytest

from tests.failover.checking import assert_none_failed_in_flight, check, history, rows
from tests.failover.clients import Clients, longest_gap_s
from tests.failover.conftest import pause
from tests.failover.field import Field
from tests.failover.machine import Machine
from tests.support.sql import Session, SqlError
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(90)

LIMIT_S = 20.0


def four_writers(field: Field, clients: Clients) -> None:
    for _ in range(4):
        clients.writer(*field.places(), retry_s=0.004)


def hand_off(old: Machine, new: Machine) -> None:
    code, found = old.ask("POST", "/failover", {"to": new.name}, limit_s=LIMIT_S)
    assert code == 200, (code, found)


def test_a_handoff_to_each_node_loses_nothing_and_fails_nothing_in_flight(field: Field) -> None:
    with field.clients() as clients:
        four_writers(field, clients)
        pauses = []
        for new in field.others(field.primary()) * 2:
            old = field.primary()
            if new is old:
                continue
            clients.await_from([old.name], time.monotonic(), LIMIT_S, 100)
            event = time.monotonic()
            hand_off(old, new)
            clients.await_from([new.name], event, LIMIT_S, 100)
            until = clients.acknowledged()[-1].done_s
            pauses.append(longest_gap_s(clients.acknowledged(), event, until))
        clients.end()
        verdict = check(field, clients)
    assert_none_failed_in_flight(field, clients.failed())
    assert not verdict.lost
    assert max(pauses) < 0.6, pauses
    # Everybody knows who was primary before.
    wait_until(lambda: len({tuple(history(node)) for node in field.all}) == 1, "all know one history", LIMIT_S)
    assert len(history(field.primary())) > len(pauses)


def test_readers_notice_nothing_of_a_handoff(field: Field) -> None:
    old = field.await_settled()
    new = field.others(old)[0]
    with field.clients() as clients:
        for node in field.all:
            clients.reader(node.name, field.path(node))
        four_writers(field, clients)
        clients.await_from([old.name], 0, LIMIT_S, 50)
        hand_off(old, new)
        clients.await_from([new.name], 0, LIMIT_S, 50)
        pause(0.2)
        clients.end()
        check(field, clients)
    for reader in clients.readers:
        assert not reader.failed, (reader.name, reader.failed[:5])
        seen = [rows for rows, _ in reader.seen]
        assert seen == sorted(seen), reader.name
    assert_none_failed_in_flight(field, clients.failed())


def test_three_nodes_are_restarted_one_after_another_under_writers(field: Field) -> None:
    with field.clients() as clients:
        four_writers(field, clients)
        clients.await_from([field.primary().name], 0, LIMIT_S, 50)
        for node in field.all:
            event = time.monotonic()
            assert node.terminate() == 0, node.log
            clients.await_from([each.name for each in field.others(node)], event, LIMIT_S, 20)
            node.start()
            wait_until(lambda node=node: node.get("/readyz")[0] == 200, f"{node.name} is ready", LIMIT_S)  # type: ignore[misc]
        clients.end()
        verdict = check(field, clients)
    assert not verdict.lost
    assert_none_failed_in_flight(field, clients.failed())


def test_a_handoff_to_a_node_that_is_unknown_or_gone_is_refused_and_writers_go_on(field: Field) -> None:
    old = field.await_settled()
    gone = field.others(old)[0]
    with field.clients() as clients:
        writer = clients.writer(*field.places(old))
        clients.await_from([old.name], 0, LIMIT_S)
        code, found = old.ask("POST", "/failover", {"to": "nobody"}, limit_s=LIMIT_S)
        assert code == 409, (code, found)
        assert "nobody" in found["message"]
        gone.kill()
        code, found = old.ask("POST", "/failover", {"to": gone.name}, limit_s=LIMIT_S)
        assert code == 409, (code, found)
        clients.await_from([old.name], time.monotonic(), LIMIT_S, 20)
        clients.end()
        assert not writer.failed, writer.failed[:5]
        field.heal()
        assert not check(field, clients).lost


def test_a_writer_that_sits_in_a_transaction_is_named_and_is_pushed_out_only_by_force(field: Field) -> None:
    old = field.await_settled()
    new = field.others(old)[0]
    with field.clients() as clients:
        writer = clients.writer(*field.places(old))
        clients.await_from([old.name], 0, LIMIT_S)
        with Session(field.path(old), mode="rw") as sitting:
            sitting.run("BEGIN IMMEDIATE")
            sitting.run("INSERT INTO entry VALUES ('sitting', 1, '', x'')")
            code, found = old.ask("POST", "/failover", {"to": new.name}, limit_s=LIMIT_S)
            assert code == 409, (code, found)
            assert str(sitting.pid) in found["message"], found
            sitting.run("COMMIT")
            clients.await_from([old.name], time.monotonic(), LIMIT_S, 20)
            assert not writer.failed, writer.failed[:5]
            sitting.run("BEGIN IMMEDIATE")
            sitting.run("INSERT INTO entry VALUES ('sitting', 2, '', x'')")
            code, found = old.ask("POST", "/failover", {"to": new.name, "force": True}, limit_s=LIMIT_S)
            assert code == 200, (code, found)
            with pytest.raises(SqlError):
                sitting.run("COMMIT")
        clients.end()
        assert not check(field, clients).lost
    have = rows(field.path(new))
    assert ("sitting", 1) in have
    assert ("sitting", 2) not in have
