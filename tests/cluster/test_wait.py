"""GET /wait on a replica: an answer as soon as an ordinary reader sees the transaction, and never before."""

import contextlib
import resource
import socket
import time
from typing import Final

import pytest

from tests.cluster.comparing import caught_up
from tests.cluster.group import Group, cpu_s, kill_applier, prepare
from tests.support.sql import Session, run_sql
from tests.support.waiting import wait_until

WAITERS: Final = 2000


def position_of(group: Group, name: str) -> tuple[str, str]:
    """TXID and checksum, as an application on the primary would learn them."""
    text = group.path(f"{name}-pos").read_text().strip()
    txid, _, checksum = text.partition("/")
    return txid, checksum


def add(txid: str, number: int) -> str:
    return f"{int(txid, 16) + number:016x}"


@pytest.fixture
def waited(group: Group) -> str:
    name = "wait.db"
    if not group.path(name).exists():
        prepare(group.path(name))
    caught_up(group.primary_node, group.replicas)
    return name


def test_a_reader_sees_the_row_right_after_the_wait(group: Group, waited: str) -> None:
    replica = group.replicas[0]
    with Session(group.path(waited)) as writer, Session(replica.path(waited)) as reader:
        for number in range(1, 201):
            writer.run("INSERT INTO entry VALUES ('row', ?, randomblob(?))", number, 10 if number % 20 else 500_000)
            txid, checksum = position_of(group, waited)
            code, body = replica.get(f"/wait?db={waited}&txid={txid}&checksum={checksum}&timeout=20s", 30)
            assert (code, body["txid"], body["checksum"]) == (200, txid, checksum)
            if number % 25 == 0:
                assert run_sql(replica.path(waited), "SELECT max(number) FROM entry") == [(number,)]
            assert reader.run("SELECT max(number) FROM entry") == [(number,)]
            if number % 50 == 0:
                kill_applier(replica)
        writer.run("DELETE FROM entry")


def test_a_timeout_answers_with_the_position_that_was_reached(group: Group, waited: str) -> None:
    txid, checksum = position_of(group, waited)
    began = time.monotonic()
    code, body = group.replicas[0].get(f"/wait?db={waited}&txid={add(txid, 1)}&timeout=500ms", 30)
    assert 0.4 < time.monotonic() - began < 10
    assert (code, body["error"], body["txid"], body["checksum"]) == (504, "timeout", txid, checksum)
    assert group.replicas[0].get(f"/wait?db={waited}&txid={add(txid, 1)}&timeout=0s", 30)[0] == 504


def test_a_position_of_another_history_is_a_conflict(group: Group, waited: str) -> None:
    txid, checksum = position_of(group, waited)
    other = f"{int(checksum, 16) ^ 1:016x}"
    for node in group.all:
        assert node.get(f"/wait?db={waited}&txid={txid}&checksum={other}&timeout=5s")[0] == 409
        assert node.get(f"/wait?db={waited}&txid={add(txid, -1)}&checksum={other}&timeout=5s")[0] == 409
        assert node.get(f"/wait?db={waited}&txid={txid}&checksum={checksum}&timeout=5s")[0] == 200


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("db=unknown.db&txid=1", 404),
        ("db=sub/unknown.db&txid=1", 404),
        ("txid=1", 400),
        ("db=&txid=1", 400),
        ("db=wait.db", 400),
        ("db=wait.db&txid=", 400),
        ("db=wait.db&txid=xyz", 400),
        ("db=wait.db&txid=-1", 400),
        ("db=wait.db&txid=0x1", 400),
        ("db=wait.db&txid=00000000000000001", 400),
        ("db=wait.db&txid=1&timeout=soon", 400),
        ("db=wait.db&txid=1&timeout=-1s", 400),
        ("db=wait.db&txid=1&timeout=", 400),
        ("db=wait.db&txid=1&checksum=zz", 400),
        ("db=wait.db&txid=1&checksum=", 400),
    ],
)
def test_what_cannot_be_waited_for_is_said_at_once(group: Group, waited: str, query: str, code: int) -> None:
    for node in group.all:
        began = time.monotonic()
        found, body = node.get(f"/wait?{query}")
        assert found == code, body
        assert body["error"]
        assert body["message"]
        assert time.monotonic() - began < 5


def test_two_thousand_wait_without_cost_and_are_all_answered(group: Group, waited: str) -> None:
    replica = group.replicas[0]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, WAITERS + 500)), hard))
    txid, _ = position_of(group, waited)
    request = f"GET /wait?db={waited}&txid={add(txid, 1)}&timeout=90s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    waiters: list[socket.socket] = []
    # Opened first: select() takes low descriptors only.
    with Session(group.path(waited)) as writer, contextlib.ExitStack() as sockets:
        for _ in range(WAITERS):
            each = sockets.enter_context(socket.create_connection(("127.0.0.1", replica.http_port), timeout=60))
            waiters.append(each)
            each.sendall(request.encode())
        # All of them are in when one that comes now has been answered and nothing is being done any more.
        assert replica.get(f"/wait?db={waited}&txid={add(txid, 1)}&timeout=0s", 60)[0] == 504

        def is_quiet() -> bool:
            before, began = cpu_s(replica), time.monotonic()
            time.sleep(1.0)
            return (cpu_s(replica) - before) / (time.monotonic() - began) < 0.1

        wait_until(is_quiet, "the replica is quiet with all who wait", 40)
        began = time.monotonic()
        writer.run("UPDATE counter SET value = value + 1")
        answers = [read_all(each) for each in waiters]
        taken_s = time.monotonic() - began
        assert not {each[:300] for each in answers if not each.startswith(b"HTTP/1.1 200")}
        assert taken_s < 30
    assert run_sql(replica.path(waited), "SELECT value FROM counter") == run_sql(
        group.path(waited), "SELECT value FROM counter"
    )


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def test_waiters_for_the_future_do_not_slow_commits_down(group: Group, waited: str) -> None:
    replica = group.replicas[0]
    txid, _ = position_of(group, waited)
    request = f"GET /wait?db={waited}&txid={add(txid, 1 << 30)}&timeout=90s HTTP/1.1\r\nHost: x\r\n\r\n".encode()

    def burst_s(writer: Session) -> float:
        began = time.monotonic()
        writer.run("UPDATE counter SET value = value + 1", times=1000, limit_s=60)
        replica.wait_for(waited, group.primary_node.position(waited), 60)
        return time.monotonic() - began

    with Session(group.path(waited)) as writer, contextlib.ExitStack() as sockets:
        burst_s(writer)
        alone_s = burst_s(writer)
        for _ in range(WAITERS // 2):
            each = sockets.enter_context(socket.create_connection(("127.0.0.1", replica.http_port), timeout=60))
            each.sendall(request)
        assert replica.get(f"/wait?db={waited}&txid={add(txid, 1 << 30)}&timeout=0s", 60)[0] == 504
        waiting_s = burst_s(writer)
    assert waiting_s < 4 * alone_s + 10, (alone_s, waiting_s)
