"""A mount that cannot be taken away does not keep the log from being made durable."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from litereplica.config import load_settings
from litereplica.errors import Unavailable
from litereplica.node import main


class Stub:
    """Stands for a listener, a store and a node, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def make_wals(self) -> None:
        self.done.append("make_wals")

    def mount(self) -> None:
        self.done.append("mount")

    def unmount(self) -> None:
        self.done.append("unmount")
        if self.done.count("unmount") == 1:
            raise Unavailable("/mnt cannot be unmounted: unmount it by hand")

    def stop(self) -> None:
        self.done.append("stop")

    def close(self) -> None:
        self.done.append("close")


def test_the_store_is_stopped_when_the_mount_cannot_be_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mount").mkdir()
    file = tmp_path / "f.yml"
    file.write_text(f"mount: {{dir: {tmp_path}/mount}}\ndata: {{dir: {tmp_path}/data}}\n", encoding="utf-8")
    stub: Any = Stub()
    monkeypatch.setattr(main, "bind", lambda *_: stub)
    monkeypatch.setattr(main, "Node", lambda *_, **__: stub)
    with pytest.raises(Unavailable, match="unmount it by hand"), ExitStack() as opened:
        opened.enter_context(main._opened(load_settings(file, {}), lambda *_: stub, None))
    assert stub.done[2:4] == ["unmount", "stop"]
