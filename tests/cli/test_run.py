"""``litereplica run``: what is in its way is one line and an exit code, and nothing is lost; how it stops."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounts import force_unmount, is_mounted
from tests.support.nodes import Node, Nodes
from tests.support.sql import Session, make_database, run_sql
from tests.support.waiting import wait_until

# A private /dev without /dev/fuse (or with something else under its name).
_WITHOUT_FUSE = 'mount -t tmpfs none /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && exec "$@"'
_BROKEN_FUSE = 'mount --bind /dev/null /dev/fuse && exec "$@"'


def fails(
    node: Node,
    code: int,
    *expected: str,
    command: tuple[str, ...] = (),
    prefix: tuple[str, ...] = (),
    mounted: bool = False,
) -> None:
    """``run`` ends by itself with this exit code and one line that has all of ``expected``; the data is as it was."""
    before, data = len(node.log), content(node.data)
    node.start(*command, wait=False, prefix=prefix)
    found = node.wait_ended()
    said = node.log[before:]
    lines = [line for line in said.splitlines() if line.startswith("litereplica: ")]
    assert found == code, said
    assert len(lines) == 1, said
    assert "Traceback" not in said
    assert "internal error" not in said
    for text in expected:
        assert text in lines[0]
    assert is_mounted(node.mount) == mounted
    assert {name: found for name, found in content(node.data).items() if name in data} == data


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.fixture(scope="module")
def kept() -> Iterator[Path]:
    """A data directory with the database app.db of 50 rows, cleanly stopped."""
    made = Nodes()
    try:
        node = made.standalone()
        make_database(node.path(), rows=50)
        node.stop()
        yield node.data
    finally:
        made.tear_down()


@pytest.fixture
def node(nodes: Nodes, kept: Path) -> Node:
    """A node that has run before, and is stopped."""
    found = nodes.make()
    subprocess.run(["cp", "-a", str(kept), str(found.data)], check=True, timeout=30)
    return found


def still_has(node: Node, rows: int = 50) -> None:
    """Once what was wrong is put right, everything is there."""
    node.start()
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(rows,)]
    node.stop()


# ------------------------------------------------------------------------------------------------------ configuration
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mount: {dirr: /x}", "unknown key 'mount.dirr'; did you mean 'mount.dir'?"),
        ("http: {listen: nowhere}", "http.listen"),
        ("data: {retention: {age: soon}}", "data.retention.age"),
        ("lease: {type: static}", "lease.static.primary"),
        ("node: [", "config.yml"),
    ],
)
def test_a_wrong_configuration_is_exit_code_2(nodes: Nodes, text: str, expected: str) -> None:
    node = nodes.make()
    node.config.write_text(text, encoding="utf-8")
    fails(node, 2, expected)
    assert not node.data.exists()


def test_a_missing_configuration_is_exit_code_2(nodes: Nodes) -> None:
    node = nodes.make()
    node.config.unlink()
    fails(node, 2, "config.yml")


# -------------------------------------------------------------------------------------------------------------- ports
def test_a_taken_http_port_is_named_with_its_key(node: Node) -> None:
    with socket.create_server(("127.0.0.1", node.http_port)):
        fails(node, 1, f"127.0.0.1:{node.http_port}", "http.listen", "stop what uses the port")


def test_a_taken_replication_port_is_named_with_its_key(nodes: Nodes) -> None:
    node = nodes.make_primary()
    with socket.create_server(("127.0.0.1", node.replication_port)):
        fails(node, 1, f"127.0.0.1:{node.replication_port}", "replication.listen")
    node.start()


def test_an_address_of_another_machine_is_named_with_its_key(nodes: Nodes) -> None:
    node = nodes.make(http={"listen": "192.0.2.1:20202"})
    fails(node, 1, "192.0.2.1:20202", "http.listen")


# --------------------------------------------------------------------------------------------------------------- disk
def test_a_disk_that_does_not_take_what_a_replica_needs_is_one_line(nodes: Nodes) -> None:
    """It has to make a WAL for a database in rollback mode, before it mounts."""
    node = nodes.make_primary()
    node.start()
    run_sql(node.path(), "CREATE TABLE t (v); INSERT INTO t VALUES (1)")
    node.stop()
    at = {"name": "nobody", "http": "http://127.0.0.1:1", "replication": "127.0.0.1:1"}
    node.configure(lease={"type": "static", "static": {"primary": at}})
    read_only = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", read_only, str(node.data / "files"))
    fails(node, 3, str(node.data), "Read-only file system", "check the disk and its rights", prefix=prefix)


# -------------------------------------------------------------------------------------------------------- mount point
def test_a_missing_mount_point_is_refused(node: Node) -> None:
    node.mount.rmdir()
    fails(node, 1, "mount point missing", f"mkdir -p {node.mount}")


def test_a_mount_point_with_files_is_refused_and_they_stay(node: Node) -> None:
    (node.mount / "mine.txt").write_text("mine", encoding="utf-8")
    fails(node, 1, "mount point not empty", "move them away")
    assert (node.mount / "mine.txt").read_text(encoding="utf-8") == "mine"


def test_a_mount_point_that_is_a_file_is_refused(nodes: Nodes) -> None:
    node = nodes.make()
    node.mount.rmdir()
    node.mount.write_text("a file", encoding="utf-8")
    fails(node, 1, "is not a directory")


def test_a_mount_point_that_something_else_is_mounted_on_is_refused(nodes: Nodes) -> None:
    node = nodes.make()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(node.mount)], check=True, timeout=10)
    fails(node, 1, "mount point busy", f"umount {node.mount}", mounted=True)


def test_a_second_node_on_the_same_mount_point_is_refused(nodes: Nodes) -> None:
    first = nodes.standalone("first")
    second = nodes.make("second")
    second.mount = first.mount
    second.configure()
    fails(second, 1, "mount point busy", mounted=True)
    make_database(first.path())  # the first goes on


@pytest.mark.parametrize(("script", "expected"), [(_WITHOUT_FUSE, "modprobe fuse"), (_BROKEN_FUSE, "/dev/fuse")])
def test_a_machine_without_fuse_is_told_what_to_do(node: Node, script: str, expected: str) -> None:
    fails(node, 1, "/dev/fuse", expected, prefix=("unshare", "-m", "sh", "-c", script, "sh"))


# ----------------------------------------------------------------------------------------------------- data directory
def test_a_data_directory_in_use_names_the_process(nodes: Nodes) -> None:
    first = nodes.standalone("first")
    second = nodes.make("second", data=first.data)
    fails(second, 1, f"in use by process {first.pid}", "data.dir")
    make_database(first.path())


def test_a_data_directory_of_a_newer_version_is_left_as_it_is(node: Node) -> None:
    format_file = node.data / "format"
    text = format_file.read_text(encoding="utf-8")
    format_file.write_text(text.replace("1", "7"), encoding="utf-8")
    fails(node, 1, "newer version", "format 7")
    format_file.write_text(text, encoding="utf-8")
    still_has(node)


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"\0\xff"), Path.unlink])
def test_a_data_directory_without_a_sound_format_file_is_damaged(node: Node, damage: Callable[[Path], object]) -> None:
    format_file = node.data / "format"
    damage(format_file)
    fails(node, 4, str(format_file))


def test_a_data_directory_that_cannot_be_made_is_refused(nodes: Nodes) -> None:
    blocker = nodes.folder / "blocker"
    blocker.write_text("a file", encoding="utf-8")
    node = nodes.make(data=blocker / "data")
    fails(node, 1, str(blocker / "data"), "data.dir")


def test_a_full_disk_at_the_start_is_one_line(nodes: Nodes) -> None:
    disk = nodes.folder / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True, timeout=10)
    with contextlib.suppress(OSError):
        (disk / "ballast").write_bytes(b"\0" * 65536)
    node = nodes.make(data=disk / "data")
    fails(node, 3, "No space left on device", "make room")
    (disk / "ballast").unlink()
    node.start()


def test_a_damaged_record_in_the_log_is_named_and_nothing_is_changed(nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path())
    with Session(node.path()) as session:
        session.run("INSERT INTO t (v) VALUES (randomblob(4000))", times=40)
    node.kill()  # so that the next start reads the log
    (segment,) = (node.data / "db" / "app.db").glob("*.ltx")
    sound = segment.read_bytes()
    at = len(sound.rstrip(b"\0")) // 2
    segment.write_bytes(sound[:at] + bytes(byte ^ 0xFF for byte in sound[at : at + 8]) + sound[at + 8 :])
    force_unmount(node.mount)
    fails(node, 4, "damaged", str(segment.parent), segment.name, "record 00000000000000")
    segment.write_bytes(sound)
    node.start()
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(40,)]


# ------------------------------------------------------------------------------------------------------- fixed primary
@pytest.mark.parametrize(
    ("host", "warned"), [("192.0.2.1", True), ("2001:db8::1", True), ("127.0.0.2", False), ("localhost", False)]
)
def test_a_primary_s_file_on_another_machine_is_said_at_the_start(nodes: Nodes, host: str, *, warned: bool) -> None:
    """Nothing else would notice: its applications commit, and no replica ever asks it."""
    node = nodes.make_primary()
    at = f"[{host}]:{node.replication_port}" if ":" in host else f"{host}:{node.replication_port}"
    lease = {
        "type": "static",
        "static": {"primary": {"name": node.name, "http": f"http://127.0.0.1:{node.http_port}", "replication": at}},
    }
    node.configure(lease=lease, replication={"listen": f"0.0.0.0:{node.replication_port}"})
    node.start()
    if warned:
        wait_until(lambda: node.log_lines("primary_is_elsewhere"), "the log says it")
    else:
        time.sleep(0.5)
    lines = node.log_lines("primary_is_elsewhere")
    assert len(lines) == (1 if warned else 0), node.log
    assert all(at in line and "node.name" in line for line in lines)


# ------------------------------------------------------------------------------------------------------------ replica
def test_a_wrong_primary_address_is_said_once_and_the_replica_keeps_trying(nodes: Nodes) -> None:
    primary = nodes.make_primary()
    replica = nodes.make_replica(primary).start(wait=False)
    wait_until(lambda: replica.get("/livez")[0] == 200, "the replica answers")
    address = f"127.0.0.1:{primary.replication_port}"

    def said() -> list[str]:
        return [line for line in replica.log.splitlines() if address in line and " warning " in line]

    wait_until(said, "the log names the address")
    time.sleep(1.5)  # the time in which it tries several times: there must be no second line
    assert len(said()) == 1, replica.log
    code, found = replica.get("/readyz")
    assert code == 503
    assert address in found["reason"]
    primary.start()
    replica.wait_ready()
    make_database(primary.path(), rows=3)
    replica.wait_for("app.db", primary.position())


# --------------------------------------------------------------------------------------------------------------- stop
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_clean_stop_in_which_no_commit_is_lost(nodes: Nodes, number: signal.Signals) -> None:
    node = nodes.standalone()
    make_database(node.path())
    with Session(node.path()) as session:
        session.send("INSERT INTO t (v) VALUES (randomblob(500))", times=100_000)
        wait_until(lambda: int(node.position()[:16], 16) > 100, "some commits")
        node.signal(number)
        assert node.wait_ended() == 0, node.log
        session.kill()
    assert not is_mounted(node.mount)
    assert not node.children()
    assert not node.log_lines("request_failed")
    node.start()
    committed = int(node.position()[:16], 16) - 2
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(committed,)]


def test_a_stop_before_the_node_is_ready_is_clean_too(nodes: Nodes) -> None:
    replica = nodes.make_replica(nodes.make_primary()).start("sleep", "100", wait=False)
    wait_until(lambda: replica.get("/livez")[0] == 200, "the replica answers")
    replica.stop()
    assert not replica.log_lines("application_started")


def test_a_second_signal_ends_it_at_once(nodes: Nodes) -> None:
    node = nodes.make().start(
        sys.executable, "-c", "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(99)"
    )
    wait_until(lambda: node.log_lines("application_started"), "the application runs")
    make_database(node.path(), rows=5)
    wait_until(lambda: any(b"SIG_IGN" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in node.children()), "it")
    time.sleep(0.3)  # until the application ignores the signal, which nothing shows from outside
    node.signal(signal.SIGTERM)
    wait_until(lambda: node.log_lines("stopping"), "the stop has begun")
    assert node.process is not None
    assert node.process.poll() is None
    node.signal(signal.SIGTERM)
    assert node.wait_ended(5) == 130
    assert node.log_lines("stopped_at_once")
    assert not is_mounted(node.mount)
    wait_until(lambda: not node.children(), "the children end")
    node.start()
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(5,)]


SLOW_TO_UNMOUNT = """
import runpy, sys, time
from litereplica.node.node import Node
unmount = Node.unmount
def slow(node):
    print("unmounts", flush=True)
    time.sleep(0.5)
    unmount(node)
Node.unmount = slow
sys.argv[0:1] = ["litereplica", "-c"]
sys.argv.append("run")
runpy.run_module("litereplica", run_name="__main__")
"""


class SlowToUnmount(Node):
    def program(self) -> list[str]:
        return [sys.executable, "-c", SLOW_TO_UNMOUNT, str(self.config)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_while_it_unmounts_leaves_no_mount(nodes: Nodes, number: signal.Signals) -> None:
    node = nodes.add(SlowToUnmount(nodes.folder / "a", "a"))
    node.start()
    make_database(node.path(), rows=5)
    node.signal(number)
    wait_until(lambda: "unmounts" in node.log, "it unmounts")
    node.signal(number)
    assert node.wait_ended(10) == 0
    assert not is_mounted(node.mount)


def test_a_mount_that_is_taken_away_ends_the_node_with_exit_code_3(nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path(), rows=5)
    subprocess.run(["umount", str(node.mount)], check=True, timeout=20)
    assert node.wait_ended() == 3, node.log
    assert "taken away" in node.log.splitlines()[-1]
    assert "Traceback" not in node.log
    node.start()
    assert run_sql(node.path(), "SELECT count(*) FROM t") == [(5,)]


# -------------------------------------------------------------------------------------------------------- application
def test_an_application_starts_when_the_node_is_ready_and_its_exit_code_becomes_ours(nodes: Nodes) -> None:
    node = nodes.make()
    program = (
        "import sqlite3, sys, urllib.request\n"
        f"assert urllib.request.urlopen('{node.url}/readyz').status == 200\n"
        f"connection = sqlite3.connect('{node.path()}', isolation_level=None)\n"
        "connection.execute('PRAGMA journal_mode=WAL')\n"
        "connection.execute('CREATE TABLE t (id INTEGER PRIMARY KEY, v)')\n"
        "print('told:', sys.argv[1:], flush=True)\n"
        "sys.exit(7)\n"
    )
    node.start(sys.executable, "-c", program, "--option", "-c", "value", wait=False)
    assert node.wait_ended() == 7, node.log
    assert "told: ['--option', '-c', 'value']" in node.log
    assert not is_mounted(node.mount)
    still_has(node, 0)


def test_an_application_from_the_configuration_that_a_signal_ended_is_reported_as_a_shell_does(nodes: Nodes) -> None:
    node = nodes.make()
    node.configure()
    text = node.config.read_text(encoding="utf-8").rstrip().removesuffix("}") + ', "exec": ["sh", "-c", "kill -9 $$"]}'
    node.config.write_text(text, encoding="utf-8")
    node.start(wait=False)
    assert node.wait_ended() == 128 + 9, node.log


def test_an_application_that_does_not_exist_is_exit_code_2(nodes: Nodes) -> None:
    fails(nodes.make(), 2, "'no-such-program' cannot be started", command=("no-such-program",))


@pytest.mark.parametrize(("handler", "code"), [("sys.exit(5)", 5), ("sys.exit(0)", 0), (None, 0)])
def test_signals_are_passed_on_and_the_application_ends_before_the_mount(
    nodes: Nodes, handler: str | None, code: int
) -> None:
    node = nodes.make()
    program = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('heard SIGHUP', flush=True))\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('heard SIGUSR1', flush=True))\n"
        "def stop(*_):\n"
        f"    print('mount has', len(os.listdir('{node.mount}')), flush=True)\n"
        f"    {handler or 'pass'}\n"
        + ("signal.signal(signal.SIGTERM, stop)\n" if handler else "")
        + "print('up', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    node.start(sys.executable, "-c", program)

    def said(text: str) -> bool:
        return text in node.log

    wait_until(partial(said, "\nup\n"), "the application runs")
    for name in ("SIGHUP", "SIGUSR1"):
        node.signal(getattr(signal, name))
        wait_until(partial(said, f"heard {name}"), f"{name} arrives")
    assert node.terminate() == code, node.log
    assert ("mount has 0" in node.log) == bool(handler)
    assert not is_mounted(node.mount)
    assert not node.children()


def test_the_demo_cleans_up_when_it_is_interrupted(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "litereplica", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert demo.stdout is not None
    try:
        for line in demo.stdout:
            if "Ctrl-C ends the demo" in line:
                break
        demo.send_signal(signal.SIGINT)
        assert demo.wait(40) == 0
    finally:
        demo.kill()
        demo.wait()
        demo.stdout.close()
    assert not list(tmp_path.iterdir())
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")


def test_the_demo_once_ends_by_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "litereplica", "demo", "--once"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "byte for byte" in done.stdout
    assert not list(tmp_path.iterdir())
