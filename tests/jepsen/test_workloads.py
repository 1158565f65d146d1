"""Every workload on a plain folder, where SQLite is as right as can be: its calls are what its checkers expect."""

import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jepsen.client import Client
from jepsen.description import Description
from jepsen.history import Call
from jepsen.judge import CHECKERS, Judgement, judge
from jepsen.lines import Record
from jepsen.session import Place, Session, Undone
from jepsen.workloads import WORKLOADS
from jepsen.workloads.anywhere import PROXIED
from jepsen.workloads.base import Order, Request, Workload
from jepsen.workloads.register import ELSEWHERE
from tests.jepsen.making import Making

CALLS = 400
# What needs a node that answers is seen in real runs only.
HERE = sorted(set(WORKLOADS) - {"own-writes"})
NOT_HERE = {ELSEWHERE, PROXIED}


class Run:
    """Some clients, one call at a time, each with connections of its own."""

    def __init__(self, name: str, folder: Path, seed: int, clients: int = 3) -> None:
        self.workload = WORKLOADS[name]("run")
        self.making = Making()
        self.numbers = random.Random(seed)
        places = {"a": Place(folder, "")}
        self._clients = [Client(WORKLOADS[name]("run"), Session(places), self.numbers) for _ in range(clients)]
        assert self._clients[0].obey({"prepare": "a"})["type"] == "ok"
        for database in self.workload.databases:
            (folder / f"{database}-pos").write_text(f"{1:016x}/{1:016x}\n", encoding="ascii")
            (folder / f"{database}-halt").touch()

    def call(self, request: Request) -> None:
        at = self.numbers.randrange(len(self._clients))
        index = self.making.begin(at, request.f, request.value, "a")
        order = Order(index, request.f, request.value, request.database, "a", "a", request.how)
        answer = self._clients[at].obey({name: getattr(order, name) for name in Order.__dataclass_fields__})
        value = answer["value"] if answer["type"] == "ok" else request.value
        self.making.end(at, answer["type"], value, "a", answer["error"])
        if answer["type"] == "ok":
            self.workload.hear(request, value)

    def judged(self) -> Judgement:
        description = Description(
            self.workload.name,
            stale_reads=self.workload.stale_reads,
            total=self.workload.total,
            accounts=self.workload.accounts,
        )
        return judge(Record(tuple(self.making.operations), description), clock=time.monotonic)


def run(name: str, folder: Path, seed: int = 1) -> Run:
    made = Run(name, folder, seed)
    for _ in range(CALLS):
        request = made.workload.ask(made.numbers)
        if request.how not in NOT_HERE:
            made.call(request)
    for request in made.workload.last(["a"]):
        if request.how not in NOT_HERE:
            made.call(request)
    return made


def test_every_workload_has_its_checkers() -> None:
    assert set(WORKLOADS) == set(CHECKERS)


@pytest.mark.parametrize("name", HERE)
def test_a_run_on_sqlite_alone_is_valid(name: str, tmp_path: Path) -> None:
    made = run(name, tmp_path)
    judgement = made.judged()
    assert judgement.valid is True, judgement.results
    calls: Sequence[Call] = judgement.calls
    assert sum(call.ok for call in calls) > 0.7 * len(calls)
    assert not any(call.indeterminate for call in calls)
    rows = written(tmp_path, made.workload)
    assert {call.index for call in calls if call.ok and call.writes} <= rows
    assert rows <= {call.index for call in calls if call.ok}


def written(folder: Path, workload: Workload) -> set[int]:
    found: set[int] = set()
    for database in workload.databases:
        connection = sqlite3.connect(folder / database)
        rows = {call for (call,) in connection.execute("SELECT call FROM calls")}
        connection.close()
        assert not rows & found
        found |= rows
    return found


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (
            "append",
            "DELETE FROM list WHERE place = (SELECT max(place) FROM list WHERE key = (SELECT max(key) FROM list))",
        ),
        ("register", "UPDATE register SET value = -1"),
        ("set", "DELETE FROM element WHERE value = (SELECT min(value) FROM element)"),
        ("bank", "UPDATE account SET balance = balance + 1 WHERE id = 1"),
        ("counter", "UPDATE counter SET value = value - 1"),
        ("monotonic", "UPDATE counter SET value = value - 1"),
        ("ddl", "DELETE FROM change WHERE number = (SELECT min(number) FROM change)"),
        ("multi", "DELETE FROM element WHERE value = (SELECT min(value) FROM element)"),
        ("journal", "DELETE FROM part WHERE id = 1"),
        (
            "anywhere",
            "DELETE FROM list WHERE place = (SELECT max(place) FROM list WHERE key = (SELECT max(key) FROM list))",
        ),
    ],
)
def test_a_change_behind_its_back_is_noticed(name: str, damage: str, tmp_path: Path) -> None:
    made = run(name, tmp_path)
    connection = sqlite3.connect(tmp_path / made.workload.databases[0])
    connection.execute(damage)
    connection.commit()
    connection.close()
    for request in made.workload.last(["a"]):
        if request.how not in NOT_HERE:
            made.call(request)
    assert made.judged().valid is False


def test_a_position_that_is_read_is_a_txid_and_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "x.db-pos").write_text("000000000000001f/00000000000000ab\n", encoding="ascii")
    assert Place(tmp_path, "").position("x.db") == (31, "00000000000000ab")


# ----------------------------------------------------------------------------------------------- what an error says
class Failing(Workload):
    """Runs into an error where it is told to."""

    name = "failing"

    @property
    def databases(self) -> tuple[str, ...]:
        return ("run.db",)

    @property
    def schema(self) -> str:
        return (
            "CREATE TABLE entry (value INTEGER PRIMARY KEY CHECK (value > 0));\n"
            "CREATE TABLE child (parent REFERENCES entry (value) DEFERRABLE INITIALLY DEFERRED);\n"
        )

    def mode(self, database: str) -> str:  # noqa: ARG002  its form
        return "delete"

    def ask(self, numbers: random.Random) -> Request:
        raise NotImplementedError

    def last(self, nodes: Sequence[str]) -> list[Request]:
        raise NotImplementedError

    def perform(self, session: Session, order: Order, numbers: random.Random) -> object:  # noqa: ARG002  its form
        if order.f == "undone":
            raise Undone("no")
        session.connection("a", "run.db").execute("PRAGMA foreign_keys = ON")
        with session.writing("a", "run.db", order.index) as connection:
            connection.execute("INSERT INTO entry VALUES (?)", (order.value,))
            if order.f == "at-commit":
                connection.execute("INSERT INTO child VALUES (99)")
        if order.f == "afterwards":
            raise OSError("the position cannot be read")
        return order.value


@pytest.mark.parametrize(
    ("f", "value", "type_", "error"),
    [
        ("add", 1, "ok", ""),
        ("add", 0, "fail", "statement: SQLITE_CONSTRAINT_CHECK: CHECK constraint failed: value > 0"),
        ("undone", 1, "fail", "no"),
        ("at-commit", 1, "unclear", "commit: SQLITE_CONSTRAINT_FOREIGNKEY: FOREIGN KEY constraint failed"),
        ("afterwards", 1, "info", "done: OSError: the position cannot be read"),
    ],
)
def test_what_an_error_says_of_a_call(f: str, value: int, type_: str, error: str, tmp_path: Path) -> None:
    client = Client(Failing("run"), Session({"a": Place(tmp_path, "")}), random.Random(1))
    client.obey({"prepare": "a"})
    order: dict[str, Any] = {"index": 1, "f": f, "value": value, "database": "run.db", "node": "a", "primary": "a"}
    answer = client.obey(order)
    assert (answer["type"], answer["error"]) == (type_, error)
    # The next call finds everything in order.
    assert client.obey({**order, "index": 2, "f": "add", "value": 7})["type"] == "ok"


def test_a_lock_that_is_not_to_be_had_at_commit_is_certainly_no_commit(tmp_path: Path) -> None:
    client = Client(Failing("run"), Session({"a": Place(tmp_path, "")}), random.Random(1))
    client.obey({"prepare": "a"})
    reader = sqlite3.connect(tmp_path / "run.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM entry").fetchall()
    order = {"index": 1, "f": "add", "value": 1, "database": "run.db", "node": "a", "primary": "a"}
    assert client.obey(order) == {"type": "fail", "value": None, "error": "commit: SQLITE_BUSY: database is locked"}
    reader.close()
    assert client.obey({**order, "index": 2})["type"] == "ok"


def test_while_a_node_is_down_nothing_is_made_in_its_folder(tmp_path: Path) -> None:
    client = Client(Failing("run"), Session({"a": Place(tmp_path, "")}), random.Random(1))
    order = {"index": 1, "f": "add", "value": 1, "database": "run.db", "node": "a", "primary": "a"}
    assert client.obey(order) == {
        "type": "fail",
        "value": None,
        "error": "open: SQLITE_CANTOPEN: unable to open database file",
    }
    assert not list(tmp_path.iterdir())


def test_a_new_database_is_not_made_where_no_node_is_mounted(tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with pytest.raises(OSError, match="no mount now"):
        Session({"a": Place(mount, "of-a-node")}).make("a", "run.db")
    assert not list(mount.iterdir())
    Session({"a": Place(mount, "")}).make("a", "run.db")
    assert [each.name for each in mount.iterdir()] == ["run.db"]


def test_who_had_a_database_open_in_a_mount_that_is_gone_opens_it_anew(tmp_path: Path) -> None:
    """A folder of its own on each of two file systems stands for two mounts at one place."""
    place = tmp_path / "mount"
    place.symlink_to("/dev/shm")
    database = f"{tmp_path.name}-{time.monotonic_ns()}.db"
    session = Session({"a": Place(place, "")})
    try:
        session.make("a", database).execute("CREATE TABLE before (x)")
        before = session.connection("a", database)
        assert session.connection("a", database) is before
        place.unlink()
        place.mkdir()
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            session.connection("a", database)
        session.make("a", database).execute("CREATE TABLE after (x)")
        now = session.connection("a", database)
        assert now.execute("SELECT name FROM sqlite_schema").fetchall() == [("after",)]
        session.close("a", database)
    finally:
        Path("/dev/shm", database).unlink()
