"""Parts of a cluster that need no node: logs as they are read, a wrong disk, wrong clocks, a late wire, a full disk."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from jepsen.cluster import at_the_end, relay
from jepsen.cluster.daemon import FaultyDisk
from jepsen.cluster.log_reading import UNFORMATTED, fields, lines, role_changes
from jepsen.cluster.looking import Look
from jepsen.cluster.machine import is_client
from jepsen.cluster.relay import Delay
from jepsen.cluster.small_disk import SmallDisk
from jepsen.cluster.switches import Switches
from jepsen.ending import DatabaseEnd, LogLine, RoleChange
from jepsen.runner import calls_in
from tests.support.mounts import force_unmount
from tests.support.nodes import free_ports
from tests.support.sql import run_sql
from tests.support.waiting import wait_until

BEGAN_NS: Final = int(datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()) * 10**9
LOG: Final = """\
2026-11-21T12:00:01.500000Z info    role_changed role=replica primary=None epoch=0 reason="nobody has the lease"
2026-11-21T12:00:02.000001Z info    role_changed role=primary primary=a epoch=17 reason="a is ahead epoch=9"
2026-11-21T12:00:03.000000Z error   request_failed request=read
Traceback (most recent call last):
  File "x.py", line 1, in <module>
ValueError: role_changed role=primary
2026-11-21T12:00:04.000000Z warning replication_interrupted primary=10.0.0.1:1 reason="closed it"
2026-11-21T12:00:05.000000Z info    ready node=a
Exception ignored in: <function f at 0x1>
2026-11-21T12:00:06.000000Z info    role_changed role=candidate primary=b epoch=18 reason=x
"""


# ---------------------------------------------------------------------------------------------------------- clients
def test_a_client_that_asks_something_on_a_machine_is_not_of_it() -> None:
    options = json.dumps({"workload": "set", "tag": "t", "seed": "1", "places": {}})
    command = [sys.executable, "-m", "jepsen.client", options]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as client:
        wait_until(lambda: is_client(client.pid), "the client runs")
        assert not is_client(os.getpid())
    assert not is_client(client.pid)


# ------------------------------------------------------------------------------------------------------------- logs
def read(text: str = LOG) -> list[LogLine]:
    return lines(text, "a", lambda at_ns: at_ns - BEGAN_NS)


def test_each_line_has_its_instant_level_and_event() -> None:
    found = [(each.time_ns, each.level, each.event) for each in read()]
    assert found[:2] == [(1_500_000_000, "info", "role_changed"), (2_000_001_000, "info", "role_changed")]
    assert [level for _, level, _ in found] == ["info", "info", "error", "warning", "info", "error", "info"]


def test_a_traceback_belongs_to_the_line_before_it() -> None:
    line = read()[2]
    assert line.event == "request_failed"
    assert "Traceback (most recent call last)" in line.text
    assert line.text.endswith("ValueError: role_changed role=primary")


def test_what_no_logger_wrote_is_an_error_of_its_own() -> None:
    line = read()[5]
    assert (line.event, line.time_ns, line.text) == (
        UNFORMATTED,
        5_000_000_000,
        "Exception ignored in: <function f at 0x1>",
    )
    assert [each.event for each in read("Fatal Python error\n")] == [UNFORMATTED]


def test_roles_are_those_of_lines_that_say_so() -> None:
    assert role_changes(read()) == [
        RoleChange(1_500_000_000, "a", "replica", 0),
        RoleChange(2_000_001_000, "a", "primary", 17),
        RoleChange(6_000_000_000, "a", "none", 18),
    ]
    assert fields(read()[3]) == {"primary": "10.0.0.1:1", "reason": "closed it"}


# ------------------------------------------------------------------------------------------------------------- disk
@pytest.fixture
def switches(tmp_path: Path) -> Switches:
    return Switches(tmp_path / "switches")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_a_disk_is_well_until_it_is_broken_and_after_it_was_mended(
    switches: Switches, opened: int, tmp_path: Path
) -> None:
    disk = FaultyDisk(switches)
    other = Switches(tmp_path / "switches")
    assert disk.pwrite(opened, b"abcd", 0) == 4
    other.break_disk("write", 1)
    with pytest.raises(OSError, match="Input/output error"):
        disk.pwrite(opened, b"wxyz", 0)
    assert disk.pread(opened, 4, 0) == b"abcd"
    disk.fdatasync(opened)
    other.mend_disk()
    disk.pwrite(opened, b"wxyz", 0)
    assert disk.pread(opened, 4, 0) == b"wxyz"
    assert other.met == 1


def test_of_a_torn_write_half_arrives(switches: Switches, opened: int) -> None:
    switches.break_disk("torn", 1)
    with pytest.raises(OSError, match="Input/output error"):
        FaultyDisk(switches).pwrite(opened, b"abcdefgh", 0)
    assert os.pread(opened, 8, 0) == b"abcd"


def test_only_the_calls_that_are_meant_fail(switches: Switches, opened: int, tmp_path: Path) -> None:
    disk = FaultyDisk(switches)
    disk.pwrite(opened, b"abcd", 0)
    switches.break_disk("sync", 1)
    disk.pwrite(opened, b"efgh", 0)
    with pytest.raises(OSError, match="Input/output error") as found:
        disk.fdatasync(opened)
    assert found.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        disk.fsync_directory(tmp_path)
    switches.break_disk("read", 1)
    disk.fdatasync(opened)
    with pytest.raises(OSError, match="Input/output error"):
        disk.pread(opened, 4, 0)


def test_one_call_in_so_many_fails(switches: Switches, opened: int) -> None:
    disk = FaultyDisk(switches)
    switches.break_disk("write", 5)
    failed = 0
    for _ in range(50):
        try:
            disk.pwrite(opened, b"x", 0)
        except OSError:
            failed += 1
    assert failed == switches.met == 10


def test_a_torn_write_may_be_the_last_thing_that_a_process_does(switches: Switches, tmp_path: Path) -> None:
    switches.break_disk("torn-die", 1)
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom jepsen.cluster.daemon import FaultyDisk\n"
        "from jepsen.cluster.switches import Switches\n"
        "descriptor = os.open(sys.argv[2], os.O_RDWR | os.O_CREAT)\n"
        "FaultyDisk(Switches(Path(sys.argv[1]))).pwrite(descriptor, b'abcdefgh', 0)\nprint('alive')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "switches", tmp_path / "torn"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (137, b""), done.stderr
    assert (tmp_path / "torn").read_bytes() == b"abcd"


# ------------------------------------------------------------------------------------------------------------ clocks
def test_a_process_sees_the_time_that_the_switches_say_and_nobody_else_does(switches: Switches, tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom jepsen.cluster.daemon import put_clocks_wrong\n"
        "from jepsen.cluster.switches import Switches\nput_clocks_wrong(Switches(Path(sys.argv[1])))\n"
        "for _ in sys.stdin:\n"
        "    print(time.time(), time.time_ns(), time.clock_gettime(time.CLOCK_REALTIME), time.monotonic(),\n"
        "          time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "switches"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def ahead() -> list[int]:
        """Of each clock, whole seconds."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        wall, wall_ns, real, monotonic, boot = map(float, process.stdout.readline().split())
        now, boot_now = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
        found = [wall - now, wall_ns / 1e9 - now, real - now, monotonic - time.monotonic(), boot - boot_now]
        return [round(each / 10) * 10 for each in found]

    with process:
        assert ahead() == [0, 0, 0, 0, 0]
        switches.wall_ns = 3700 * 10**9
        assert ahead() == [3700, 3700, 3700, 0, 0]
        switches.wall_ns = -500 * 10**9
        switches.boot_ns = 200 * 10**9
        assert ahead() == [-500, -500, -500, 0, 200]
        switches.wall_ns = 0
        assert ahead() == [0, 0, 0, 0, 200]
        process.stdin.close()
    with pytest.raises(AssertionError, match="never goes back"):
        switches.boot_ns = 0


# ------------------------------------------------------------------------------------------------------------- wire
@contextlib.contextmanager
def echo() -> Iterator[int]:
    """The port of somebody who answers what he is told, and then says goodbye."""

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)
            connection.sendall(b"bye")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _round_trip_s(wire: socket.socket) -> float:
    began = time.monotonic()
    wire.sendall(b"there and back")
    received = b""
    while len(received) < 14:
        received += wire.recv(64)
    assert received == b"there and back"
    return time.monotonic() - began


def test_a_relay_delivers_everything_late_in_order_and_whole(tmp_path: Path) -> None:
    settings, port = tmp_path / "relay.json", free_ports(1)[0]
    with echo() as target:
        process = subprocess.Popen([sys.executable, "-m", "jepsen.cluster.relay", settings, f"{port}:{target}"])
        try:
            wait_until(lambda: _connects(port), "the relay accepts connections")
            with socket.create_connection(("127.0.0.1", port), 20) as wire:
                _round_trip_s(wire)
                relay.write(settings, Delay(0.15))
                wait_until(lambda: _round_trip_s(wire) >= 0.3, "what is sent is late")
                relay.write(settings, Delay(jitter_s=0.02))
                wait_until(lambda: _round_trip_s(wire) < 0.3, "it is not so late any more")
                sent = os.urandom(1_000_000)

                def send() -> None:
                    wire.sendall(sent)
                    wire.shutdown(socket.SHUT_WR)

                threading.Thread(target=send).start()
                received = b"".join(iter(lambda: wire.recv(65536), b""))
                assert received == sent + b"bye"
        finally:
            process.kill()
            process.wait(10)


def test_lost_packets_cost_what_tcp_waits() -> None:
    import random

    numbers = random.Random(1)
    waits = [Delay(lost=0.5).of_a_piece(numbers) for _ in range(1000)]
    assert 400 < waits.count(0.0) < 600
    assert {round(each, 3) for each in waits} >= {0.0, 0.2, 0.6, 1.4}


# -------------------------------------------------------------------------------------------------------- small disk
def test_a_small_disk_is_full_until_it_is_freed() -> None:
    with tempfile.TemporaryDirectory(prefix="litereplica-test-") as name:
        folder = Path(name)
        try:
            disk = SmallDisk(folder / "disk", 8 * 1024 * 1024)
            assert disk.is_there
            disk.fill()
            with pytest.raises(OSError, match="No space left"):
                (folder / "disk" / "file").write_bytes(b"x" * 4096)
            disk.fill(left_bytes=64 * 1024)
            (folder / "disk" / "file").write_bytes(b"x" * 32 * 1024)
            with pytest.raises(OSError, match="No space left"):
                (folder / "disk" / "other").write_bytes(b"x" * 64 * 1024)
            disk.free()
            disk.free()
            (folder / "disk" / "other").write_bytes(b"x" * 4 * 1024 * 1024)
        finally:
            force_unmount(folder)


# ------------------------------------------------------------------------------------------------------ in the end
def test_of_a_database_that_is_too_damaged_nobody_knows_which_calls_are_there(tmp_path: Path) -> None:
    path = tmp_path / "whole.db"
    run_sql(path, "CREATE TABLE calls (call INTEGER PRIMARY KEY); INSERT INTO calls VALUES (7)")
    whole = path.read_bytes()
    damaged = whole[:100] + b"\xff" * (len(whole) - 100)
    for content, found in ((whole, (7,)), (damaged, None)):
        look = Look(DatabaseEnd("x.db", 1, "", "", "", len(content)), content, "")
        assert at_the_end._present([[look]], frozenset({"x.db"}), calls_in, tmp_path) == found
