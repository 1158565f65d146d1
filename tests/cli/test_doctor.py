"""``litereplica doctor`` on a real machine: what is in the way, and what to do about it."""

import fcntl
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from litereplica.cli.checks import _sqlite, mounted_type
from litereplica.store.store import FORMAT_LINE, FORMAT_VERSION
from tests.cli.running import CommandLine, Ran


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    directory = tmp_path / "mount"
    directory.mkdir()
    return directory


@pytest.fixture
def data(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    return directory


def examine(litereplica: CommandLine, mount: Path, data: Path, ports: tuple[int, int] = (0, 0)) -> Ran:
    litereplica.configure(
        f"mount: {{dir: {mount}}}\ndata: {{dir: {data}, retention: {{size: 1MiB}}}}\n"
        f"http: {{listen: '127.0.0.1:{ports[0]}'}}\nreplication: {{listen: '127.0.0.1:{ports[1]}'}}\n"
    )
    return litereplica("doctor", "--json")


def failed(ran: Ran) -> dict[str, tuple[str, str]]:
    document = json.loads(ran.out)
    assert document["ok"] is (ran.code == 0)
    assert all(check["advice"] for check in document["checks"] if check["state"] != "ok")
    return {
        check["name"]: (check["found"], check["advice"]) for check in document["checks"] if check["state"] == "failed"
    }


def test_a_machine_that_can_run_a_node_is_exit_code_0(litereplica: CommandLine, mount: Path, data: Path) -> None:
    ran = examine(litereplica, mount, data)
    assert failed(ran) == {}
    assert ran.code == 0


def test_the_table_says_the_same_and_what_to_do(litereplica: CommandLine, mount: Path, data: Path) -> None:
    mount.rmdir()
    examine(litereplica, mount, data)
    ran = litereplica("doctor")
    assert (ran.code, ran.err) == (1, "")
    lines = ran.out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("FAILED"))
    assert lines[at].split(maxsplit=1)[1] == f"mount point       {mount} does not exist"
    assert lines[at + 1].strip() == f"run 'mkdir -p {mount}', or set mount.dir"


def test_a_mount_point_with_content_is_in_the_way(litereplica: CommandLine, mount: Path, data: Path) -> None:
    (mount / "app.db").touch()
    found = failed(examine(litereplica, mount, data))
    assert found["mount point"][0] == f"{mount} is not empty (it has 'app.db')"


def test_a_file_in_place_of_the_mount_point_is_in_the_way(litereplica: CommandLine, mount: Path, data: Path) -> None:
    mount.rmdir()
    mount.touch()
    assert failed(examine(litereplica, mount, data))["mount point"][0] == f"{mount} is not a directory"


def test_a_mount_point_that_is_a_link_is_in_the_way(litereplica: CommandLine, mount: Path, data: Path) -> None:
    link = mount.parent / "link"
    link.symlink_to(mount)
    found, advice = failed(examine(litereplica, link, data))["mount point"]
    assert found == f"{link} is a symbolic link to {mount}"
    assert advice.startswith(f"set mount.dir to {mount}")


def test_directories_that_meet_behind_a_link_are_in_the_way(litereplica: CommandLine, mount: Path, data: Path) -> None:
    (data / "mount").mkdir()
    link = mount.parent / "link"
    link.symlink_to(data)
    found, _ = failed(examine(litereplica, link / "mount", data))["mount point"]
    assert found.endswith("must be apart")


def test_a_data_directory_in_use_is_in_the_way_and_names_who_has_it(
    litereplica: CommandLine, mount: Path, data: Path
) -> None:
    with (data / "lock").open("w+") as lock:
        lock.write("process 42\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert failed(examine(litereplica, mount, data))["data directory"][0] == f"{data} is in use by process 42"
    assert failed(examine(litereplica, mount, data)) == {}


def test_a_data_directory_that_does_not_exist_yet_is_fine(litereplica: CommandLine, mount: Path, data: Path) -> None:
    data.rmdir()
    assert failed(examine(litereplica, mount, data)) == {}
    assert not data.exists()


def test_a_file_in_place_of_the_data_directory_is_in_the_way(litereplica: CommandLine, mount: Path, data: Path) -> None:
    data.rmdir()
    data.touch()
    assert failed(examine(litereplica, mount, data))["data directory"][0] == f"{data} is not a directory"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{FORMAT_LINE}{FORMAT_VERSION}\n", None),
        (f"{FORMAT_LINE}{FORMAT_VERSION + 1}\n", f"format {FORMAT_VERSION + 1} is newer than this version's"),
        ("rubbish", "is damaged"),
        ("", "is damaged"),
    ],
)
def test_the_format_of_the_data_directory_is_looked_at(
    litereplica: CommandLine, mount: Path, data: Path, text: str, found: str | None
) -> None:
    (data / "format").write_text(text)
    wrong = failed(examine(litereplica, mount, data))
    assert (found is None) == (wrong == {})
    assert found is None or found in wrong["data format"][0]


def test_a_data_directory_that_lost_its_format_file_is_in_the_way(
    litereplica: CommandLine, mount: Path, data: Path
) -> None:
    (data / "db").mkdir()
    assert "is missing" in failed(examine(litereplica, mount, data))["data format"][0]


@pytest.mark.parametrize("which", [0, 1])
def test_a_port_that_is_taken_is_in_the_way(litereplica: CommandLine, mount: Path, data: Path, which: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        wrong = failed(examine(litereplica, mount, data, (port, 0) if which == 0 else (0, port)))
    name = ("http port", "replication port")[which]
    assert list(wrong) == [name]
    assert wrong[name][0] == f"127.0.0.1:{port}: Address already in use"


def test_a_wrong_configuration_is_one_of_the_findings(litereplica: CommandLine) -> None:
    litereplica.configure("nodes: {}\n")
    ran = litereplica("doctor", "--json")
    assert "unknown key 'nodes'" in failed(ran)["configuration"][0]


def test_doctor_changes_nothing(litereplica: CommandLine, mount: Path, data: Path) -> None:
    examine(litereplica, mount, data)
    assert list(mount.iterdir()) == list(data.iterdir()) == []


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ((3, 6, 23), "ok"),
        ((3, 7, 0), "warning"),
        ((3, 40, 1), "warning"),
        ((3, 44, 5), "warning"),
        ((3, 44, 6), "ok"),
        ((3, 50, 6), "warning"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warning"),
        ((3, 51, 3), "ok"),
        ((3, 52, 0), "ok"),
    ],
)
def test_sqlite_versions_with_the_wal_reset_bug_are_named(version: tuple[int, ...], state: str) -> None:
    assert _sqlite(version).state == state


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/", "ext4"),
        ("/mnt/db", "fuse.litereplica"),
        ("/mnt/two words", "fuse"),
        ("/mnt", None),
        ("/mnt/db/x", None),
    ],
)
def test_the_kernel_s_list_of_mounts_is_read(directory: str, kind: str | None) -> None:
    mounts = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        "40 22 0:33 / /mnt/db rw - tmpfs tmpfs rw\n"
        "41 40 0:34 / /mnt/db rw,nosuid shared:5 master:1 - fuse.litereplica litereplica rw\n"
        "42 22 0:35 / /mnt/two\\040words rw - fuse x rw\n"
        "broken line\n"
    )
    assert mounted_type(Path(directory), mounts) == kind


def test_a_data_directory_that_cannot_be_looked_at_is_a_finding(tmp_path: Path) -> None:
    """As somebody who is not root; in a process of its own, as it cannot become root again."""
    hidden = tmp_path / "hidden"
    (hidden / "data").mkdir(parents=True)
    hidden.chmod(0o700)
    program = (
        "import os, sys; from pathlib import Path; from litereplica.cli.checks import _data; "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
        "print(*[(each.state, each.found) for each in _data(Path(sys.argv[1]), 1)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(hidden / "data")], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == f"('failed', '{hidden / 'data'} cannot be looked at (Permission denied)')"
