"""The folder below a mount: nobody's writes go there while no node runs, and a node that stopped can start again."""

import subprocess
from pathlib import Path

import pytest

from litereplica.mount.bare import guard
from tests.support.mounts import force_unmount
from tests.support.nodes import Node, Nodes

INSERT = "CREATE TABLE IF NOT EXISTS t (v); INSERT INTO t VALUES (1); SELECT count(*) FROM t"


def asked(node: Node) -> subprocess.CompletedProcess[str]:
    """What the sqlite3 shell says, which runs whether there is a mount or not."""
    return subprocess.run(["sqlite3", node.path(), INSERT], capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("ended", ["stopped", "killed"])
def test_nothing_is_written_below_a_guarded_mount_and_the_node_starts_again(nodes: Nodes, ended: str) -> None:
    node = nodes.standalone(mount={"guard": True})
    assert asked(node).stdout == "1\n"
    if ended == "stopped":
        node.stop()
    else:
        node.kill()
        assert asked(node).returncode != 0
        force_unmount(node.mount)
    refused = asked(node)
    assert refused.returncode != 0, "it was told that its transaction is committed"
    assert "unable to open" in refused.stderr
    assert list(node.mount.iterdir()) == []
    node.start()
    assert asked(node).stdout == "2\n"
    assert "mount_point_not_guarded" not in node.log


def test_without_the_guard_a_file_that_was_made_there_is_kept_and_the_node_says_what_to_do(nodes: Nodes) -> None:
    node = nodes.standalone()
    assert asked(node).stdout == "1\n"
    node.stop()
    assert asked(node).stdout == "1\n", "SQLite has made a database of its own"
    node.start(wait=False)
    assert node.wait_ended() == 1
    assert "mount.guard" in node.log
    assert asked(node).stdout == "2\n"


def test_a_file_system_without_such_directories_is_said_and_the_node_runs(nodes: Nodes) -> None:
    node = nodes.make()
    elsewhere = node.folder / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", elsewhere], check=True, timeout=10)
    node.mount = elsewhere / "mount"
    node.mount.mkdir()
    node.configure(mount={"guard": True})
    node.start()
    assert asked(node).stdout == "1\n"
    (line,) = node.log_lines("mount_point_not_guarded")
    assert "ext4" in line


def test_files_that_are_there_are_not_locked_in(nodes: Nodes) -> None:
    node = nodes.make(mount={"guard": True})
    (node.mount / "mine.txt").write_text("mine", encoding="utf-8")
    node.start(wait=False)
    assert node.wait_ended() == 1
    (node.mount / "mine.txt").rename(node.folder / "mine.txt")
    node.start()
    assert asked(node).stdout == "1\n"


def test_a_guard_can_be_taken_back(tmp_path: Path) -> None:
    for _ in range(2):
        guard(tmp_path)
        with pytest.raises(PermissionError):
            (tmp_path / "new").touch()
    guard(tmp_path, guarded=False)
    (tmp_path / "new").touch()
