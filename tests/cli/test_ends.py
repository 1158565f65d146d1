"""How a node ends when something fails, or is told to more than once: in bounded time, and never with a mount."""

import signal
import sys
from collections.abc import Iterator

import pytest

from tests.support.mounts import is_mounted
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, SqlError, make_database, run_sql
from tests.support.waiting import wait_until

_CHANGED = """
import runpy, sys
from pathlib import Path
import litereplica.node.main as main
from litereplica.node.node import Node
{change}
sys.argv[0:1] = ["litereplica", "-c"]
sys.argv.insert(3, "run")
runpy.run_module("litereplica", run_name="__main__")
"""

# As soon as the file "fault" is there, a task of the node fails.
FAULT = """
import trio
async def fail(*_):
    while not Path("fault").exists():
        await trio.sleep(0.05)
    raise RuntimeError("a fault")
main._maintain = fail
"""
FAULT_INSIDE = FAULT.replace("main._maintain = fail", "Node._watch_ready = fail")

# A request for which nobody finds an answer, and the limits of a test.
UNANSWERED = (
    FAULT
    + """
import litereplica.node.child as child
from litereplica.mount.operations import Operations
async def flush(self, fh):
    print("flushes", flush=True)
    await trio.sleep_forever()
Operations.flush = flush
child.STOP_LIMIT_S = child.KILL_LIMIT_S = main.STOP_LIMIT_S = main.KILL_LIMIT_S = main.CUT_LIMIT_S = 0.7
"""
)

SLOW_TO_STOP = """
import trio
stop = Node.stop
async def slow(node):
    print("stops", flush=True)
    await trio.sleep(1.5)
    await stop(node)
Node.stop = slow
"""

# The signal falls between the question whether there was one and what comes after it.
SIGNAL_AT_THE_START = """
import os, signal
stay = main._stay_to_the_end
class Told:
    def __init__(self):
        self.event, self.sent = stay(), False
    def is_set(self):
        found = self.event.is_set()
        if not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return found
main._stay_to_the_end = Told
"""

# Has a database open, and everything of it that SQLite keeps open.
OPEN = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=WAL")
connection.execute("CREATE TABLE IF NOT EXISTS a (v)")
connection.execute("INSERT INTO a VALUES (1)")
print("has it open", flush=True)
time.sleep(99)
"""


class Changed(Node):
    """A node with something else in place of a part."""

    change = ""

    def program(self) -> list[str]:
        return [sys.executable, "-c", _CHANGED.format(change=self.change), str(self.config)]


def changed(nodes: Nodes, change: str) -> Changed:
    node = nodes.add(Changed(nodes.folder / "a", "a"))
    node.change = change
    return node


@pytest.fixture
def primary(nodes: Nodes) -> Iterator[Node]:
    """With app.db of 5 rows; it may be stopped (SIGSTOP) by the test."""
    node = nodes.primary()
    make_database(node.path(), rows=5)
    yield node
    if node.process is not None and node.process.poll() is None:
        node.signal(signal.SIGCONT)


# ------------------------------------------------------------------------------------------------------------ failures
def test_a_replica_whose_applier_has_a_database_open_and_no_application_is_exit_code_2(
    nodes: Nodes, primary: Node
) -> None:
    replica = nodes.replica(primary)
    replica.wait_for("app.db", primary.position())
    replica.stop()
    run_sql(primary.path(), "INSERT INTO t (v) VALUES (1)")
    replica.start("no-such-program", wait=False)
    assert replica.wait_ended(20) == 2, replica.log
    assert "'no-such-program' cannot be started" in replica.log
    replica.assert_gone()


@pytest.mark.parametrize("change", [FAULT, FAULT_INSIDE])
def test_a_node_that_fails_ends_although_its_application_has_a_database_open(nodes: Nodes, change: str) -> None:
    node = changed(nodes, change)
    node.start(sys.executable, "-c", OPEN, str(node.path()))
    wait_until(lambda: "\nhas it open" in node.log, "the application has it open")
    (node.folder / "fault").touch()
    assert node.wait_ended(15) not in (0, 130), node.log
    assert "a fault" in node.log
    assert not node.log_lines("mount_cut")
    node.assert_gone()


def test_a_node_that_fails_commits_nothing_more(nodes: Nodes) -> None:
    """Its application may go on for a while; nobody renews the lease any more, and nobody replicates."""
    node = changed(nodes, FAULT)
    program = (
        OPEN.replace("time.sleep(99)", "")
        + "import signal\n"
        + "def stop(*_):\n"
        + "    print('has', connection.execute('SELECT count(*) FROM a').fetchone()[0], flush=True)\n"
        + "    try:\n"
        + "        connection.execute('INSERT INTO a VALUES (2)')\n"
        + "    except sqlite3.Error as error:\n"
        + "        print('refused:', error, flush=True)\n"
        + "    sys.exit(0)\n"
        + "signal.signal(signal.SIGTERM, stop)\n"
        + "print('up', flush=True)\n"
        + "while True: time.sleep(60)\n"
    )
    node.start(sys.executable, "-c", program, str(node.path()))
    wait_until(lambda: "\nup" in node.log, "the application runs")
    (node.folder / "fault").touch()
    node.wait_ended(15)
    assert "\nhas 1\n" in node.log
    assert "\nrefused: " in node.log
    node.assert_gone()


@pytest.mark.parametrize("fails", [True, False])
def test_an_application_that_no_signal_ends_ends_with_the_mount(nodes: Nodes, *, fails: bool) -> None:
    """In a request that is not answered the kernel does not let it end."""
    node = changed(nodes, UNANSWERED)
    program = f"import os, time\nos.open({str(node.path())!r}, os.O_RDWR | os.O_CREAT)\nprint('up', flush=True)\n"
    node.start(sys.executable, "-c", program + "time.sleep(99)")
    wait_until(lambda: "\nup\n" in node.log, "the application runs")
    if fails:
        (node.folder / "fault").touch()
    else:
        node.signal(signal.SIGTERM)
    assert node.wait_ended(15) not in (0, 130), node.log
    assert "\nflushes\n" in node.log
    assert node.log_lines("application_unkillable")
    node.assert_gone()


def test_a_stop_does_not_wait_for_a_commit_that_waits_for_the_primary(nodes: Nodes, primary: Node) -> None:
    writes = {"on_replica": "forward", "timeout": "60s"}
    replica = nodes.replica(primary, writes=writes, replication={"timeout": "60s"})
    replica.wait_for("app.db", primary.position())
    with Session(replica.path()) as session:
        session.run("INSERT INTO t (v) VALUES (1)")
        primary.signal(signal.SIGSTOP)
        session.send("INSERT INTO t (v) VALUES (2)")
        wait_until(lambda: replica.status()["writes"]["waiting"], "its commit is held")
        assert replica.terminate() == 0, replica.log
        with pytest.raises(SqlError):
            session.receive()
    assert replica.log_lines("commit_outcome_unknown")
    replica.assert_gone()


# ------------------------------------------------------------------------------------------------------------- signals
@pytest.mark.parametrize(("signals", "code"), [(1, 7), (2, 130)])
def test_a_stop_for_another_reason_is_no_first_signal(nodes: Nodes, signals: int, code: int) -> None:
    node = changed(nodes, SLOW_TO_STOP)
    node.start(sys.executable, "-c", "raise SystemExit(7)", wait=False)
    wait_until(lambda: "\nstops\n" in node.log, "it stops")
    node.signal(signal.SIGTERM)
    if signals > 1:
        # Two of a kind that come at once are one.
        node.signal(signal.SIGINT)
    assert node.wait_ended() == code, node.log
    assert bool(node.log_lines("stopped_at_once")) == (signals > 1)
    assert not is_mounted(node.mount)


def test_a_signal_in_any_moment_of_the_start_is_heard(nodes: Nodes) -> None:
    node = changed(nodes, SIGNAL_AT_THE_START).start(wait=False)
    assert node.wait_ended() == 0, node.log
    node.assert_gone()


def test_http_answers_for_as_long_as_the_application_lives(nodes: Nodes) -> None:
    node = nodes.make()
    program = (
        "import signal, sys, time, urllib.error, urllib.request\n"
        "def stop(*_):\n"
        "    time.sleep(0.5)\n"
        f"    print('status', urllib.request.urlopen('{node.url}/status').status, flush=True)\n"
        "    try:\n"
        f"        urllib.request.urlopen('{node.url}/readyz')\n"
        "    except urllib.error.HTTPError as error:\n"
        "        print('readyz', error.code, error.read().decode(), flush=True)\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    node.start(sys.executable, "-c", program)
    wait_until(lambda: "\nup\n" in node.log, "the application runs")
    assert node.terminate() == 0, node.log
    assert "\nstatus 200\n" in node.log
    assert "\nreadyz 503 " in node.log
    assert "this node is stopping" in node.log
    node.assert_gone()
