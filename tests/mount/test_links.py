"""A mount point whose path goes through a symbolic link, as /var/run does: it is one place, whatever it is called."""

import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from litereplica.cli.demo_nodes import own_folder
from litereplica.errors import Refused
from litereplica.mount.session import prepare_mount_point, unmount
from tests.mount.test_bare import asked
from tests.support.mounts import force_unmount, is_mounted
from tests.support.nodes import ROOT, Node, Nodes


@pytest.fixture
def linked(nodes: Nodes) -> Node:
    """A node that is not started, whose mount point is configured through a link to its folder."""
    node = nodes.make()
    link = nodes.folder / "link"
    link.symlink_to(node.folder)
    node.configure(mount={"dir": str(link / "mount")})
    return node


def test_a_clean_stop_takes_the_mount_away_and_the_node_starts_again(linked: Node) -> None:
    linked.start()
    assert asked(linked).stdout == "1\n"
    linked.stop()
    assert not is_mounted(linked.mount)
    linked.start()
    assert asked(linked).stdout == "2\n"


def test_a_dead_mount_is_taken_away_by_the_next_start(linked: Node) -> None:
    linked.start()
    linked.kill()
    assert is_mounted(linked.mount)
    linked.start()
    assert "stale_mount_removed" in linked.log


def test_the_mount_is_found_by_its_name_with_the_link(linked: Node) -> None:
    linked.start()
    unmount(linked.folder.parent / "link" / "mount")
    assert not is_mounted(linked.mount)
    linked.wait_ended()


def doctor(node: Node) -> str:
    done = subprocess.run(
        [*node.program()[:-1], "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if " mount point " in line]
    return line


def test_doctor_knows_a_live_and_a_dead_mount_behind_a_link(linked: Node) -> None:
    linked.start()
    assert "in use by a mount" in doctor(linked)
    linked.kill()
    assert "left over from a dead node" in doctor(linked)


def test_the_lock_command_on_a_dead_mount_behind_a_link_says_what_to_do(linked: Node) -> None:
    linked.start()
    assert asked(linked).stdout == "1\n"
    linked.kill()
    arguments = [*linked.program()[:-1], "lock", "app.db", "--", "true"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "internal error" not in done.stderr


def test_a_mount_point_that_is_itself_a_link_is_refused_with_its_target(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(Refused, match=rf"symbolic link.*set mount\.dir to {tmp_path}/real"):
        prepare_mount_point(tmp_path / "link")


def test_a_link_to_nothing_is_refused_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(Refused, match="symbolic link"):
        prepare_mount_point(tmp_path / "link")


def test_a_mount_point_below_something_unreachable_is_refused_with_what_to_do(nodes: Nodes) -> None:
    """Below the dead mount of another node nothing can be looked at."""
    other = nodes.standalone("other")
    other.kill()
    with pytest.raises(Refused, match=r"cannot be looked at \(Transport endpoint is not connected\)"):
        prepare_mount_point(other.mount / "inner")


@pytest.mark.parametrize("inside", ["data", "data/mount"])
def test_a_mount_point_in_the_data_directory_is_refused_through_a_link_too(tmp_path: Path, inside: str) -> None:
    (tmp_path / "root" / inside).mkdir(parents=True)
    (tmp_path / "link").symlink_to("root")
    with pytest.raises(Refused, match="must be apart"):
        prepare_mount_point(tmp_path / "link" / inside, data=tmp_path / "root" / "data")


def test_a_data_directory_in_the_mount_point_is_refused_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "root" / "mount").mkdir(parents=True)
    (tmp_path / "data").symlink_to("root/mount/inner")
    with pytest.raises(Refused, match="must be apart"):
        prepare_mount_point(tmp_path / "root" / "mount", data=tmp_path / "data")


def test_a_node_whose_directories_meet_behind_a_link_does_not_start(nodes: Nodes) -> None:
    node = nodes.make()
    node.data.mkdir()
    (node.data / "mount").mkdir()
    (nodes.folder / "link").symlink_to(node.folder)
    node.configure(mount={"dir": str(nodes.folder / "link" / "data" / "mount")})
    node.start(wait=False)
    assert node.wait_ended() == 1
    assert "must be apart" in node.log
    assert list((node.data / "mount").iterdir()) == []


def test_a_demo_s_folder_is_not_removed_while_something_is_mounted_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "link"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with own_folder() as (folder, _):
        (folder / "mount").mkdir()
        subprocess.run(["mount", "-t", "ramfs", "none", folder / "mount"], check=True, timeout=10)
        (folder / "mount" / "app.db").touch()
    try:
        assert (folder / "mount" / "app.db").exists()
    finally:
        force_unmount(tmp_path)
