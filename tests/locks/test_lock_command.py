"""``litereplica lock`` on real nodes."""

import signal
import sys
from pathlib import Path

import pytest

from tests.locks.conftest import Three
from tests.locks.opener import Command, Opener
from tests.support.sql import run_sql
from tests.support.waiting import wait_until

INSERT = "INSERT INTO t (node) VALUES (?)"
MIGRATION = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=5)
for number in range(20):
    with connection:
        (count,) = connection.execute("SELECT count(*) FROM t").fetchone()
        assert count == number, (count, number)
        connection.execute("INSERT INTO t (node) VALUES ('migration')")
print(count + 1)
"""


def test_a_command_reads_and_writes_alone_on_any_node(three: Three) -> None:
    command = Command(three.b, "app.db", "--", sys.executable, "-c", MIGRATION, str(three.b.path()))
    assert command.wait() == (0, "20\n", "")
    assert len(three.ids()) == 20
    run_sql(three.a.path(), INSERT, "a")


@pytest.mark.parametrize("where", ["configuration", "url", "path"])
def test_the_mount_is_found(three: Three, where: str) -> None:
    database = str(three.b.path()) if where == "path" else "app.db"
    command = Command(three.b, database, "--", "echo", "done", config=where != "url")
    assert command.wait() == (0, "done\n", "")


def test_it_waits_in_turn_and_gives_up_in_time_naming_the_holder(three: Three) -> None:
    with Opener(three.b) as holder:
        holder.wait_held()
        late = Command(three.a, "app.db", "--timeout", "1s", "--", "true")
        code, out, errors = late.wait()
        assert (code, out) == (3, "")
        assert "app.db could not be locked in time (node b has it since " in errors
        patient = Command(three.c, "app.db", "--", "echo", "mine")
        wait_until(lambda: (three.halt() or {}).get("waiting") == 1, "c waits")
        holder.close()
        assert patient.wait()[:2] == (0, "mine\n")


def test_a_signal_while_it_waits_ends_it_and_nothing_is_run(three: Three) -> None:
    with Opener(three.b) as holder:
        holder.wait_held()
        command = Command(three.c, "app.db", "--", "echo", "never")
        wait_until(lambda: (three.halt() or {}).get("waiting") == 1, "c waits")
        command.process.send_signal(signal.SIGINT)
        assert command.wait()[:2] == (130, "")
        wait_until(lambda: (three.halt() or {}).get("waiting") == 0, "nobody waits")


def test_a_database_that_is_not_there_is_exit_code_1(three: Three) -> None:
    code, _, errors = Command(three.b, "other.db", "--", "true").wait()
    assert code == 1, errors
    assert "there is no database other.db" in errors


def test_a_lock_that_is_lost_is_said_at_once_and_success_is_exit_code_3(three: Three) -> None:
    goes_on = three.b.folder / "goes on"
    goes_on.touch()
    command = Command(three.b, "app.db", "--", "sh", "-c", 'while [ -e "$0" ]; do sleep 0.1; done', str(goes_on))
    wait_until(lambda: (three.halt() or {}).get("node") == "b", "b has it")
    three.a.kill()
    three.a.start()
    assert command.process.stderr is not None
    assert "the lock of app.db is lost" in command.process.stderr.readline()
    goes_on.unlink()
    code, _, errors = command.wait()
    assert code == 3
    assert "others may have written meanwhile" in errors
    wait_until(lambda: three.b.status()["writes"]["locks"] == [], "it is closed")


def test_a_command_whose_lock_command_is_killed_has_the_lock_until_it_ends(three: Three) -> None:
    goes_on = three.b.folder / "goes on"
    goes_on.touch()
    command = Command(three.b, "app.db", "--", "sh", "-c", 'while [ -e "$0" ]; do sleep 0.1; done', str(goes_on))
    wait_until(lambda: (three.halt() or {}).get("node") == "b", "b has it")
    wait_until(lambda: children(command.process.pid), "the command runs")
    command.process.send_signal(signal.SIGKILL)
    command.process.wait(10)
    try:
        with Opener(three.a) as another:
            assert another.word(1) == ""
            run_sql(three.b.path(), INSERT, "b", mode="rw")
            goes_on.unlink()
            another.wait_held()
    finally:
        goes_on.unlink(missing_ok=True)
    command.wait()
    assert len(three.ids()) == 1


def children(pid: int) -> list[str]:
    """Processes that a process has started."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
