"""A crashed directory under a real node: it starts, its databases are written on, a replica becomes equal.

Knows one point at a time: seconds each, so only a few of a trace are looked at in this way.
"""

import random
from pathlib import Path

from tests.crash.model import Image
from tests.crash.program import ROLLBACK_MODES, Program
from tests.support.nodes import Nodes
from tests.support.sql import byte_equal, fold, integrity

_BOOT = slice(8, 24)


def mount_and_go_on(image: Image, seed: int, *, killed: bool, rollback: bool, actions: int = 6) -> None:
    """AssertionError when something is not as it should be."""
    nodes = Nodes()
    chance = random.Random(seed)
    try:
        primary = nodes.make_primary("a")
        image.build_in(primary.data.parent, primary.data.name)
        if not killed:
            _boot_again(primary.data, chance)
        primary.start()
        replica = nodes.replica(primary)
        modes = ("WAL", *ROLLBACK_MODES) if rollback else ("WAL",)
        program = Program(primary.mount, lambda _: None, seed, modes)
        program.start_existing()
        program.run(actions)
        program.close()
        for name in program.names:
            position = primary.position(name)
            assert position.split("/")[0] != f"{0:016x}"
            replica.wait_for(name, position)
            assert integrity(primary.path(name)) == "ok"
            assert integrity(replica.path(name)) == "ok"
            fold(primary.path(name))
        primary.stop()
        replica.stop()
        for name in program.names:
            assert byte_equal(primary.data / "files" / name, replica.data / "files" / name), name
    except BaseException:
        nodes.print_logs()
        raise
    finally:
        problems = nodes.tear_down()
    assert not problems, problems


def _boot_again(root: Path, chance: random.Random) -> None:
    """The directory was last written by another boot of the machine than this one."""
    for path in root.glob("db/*/checksums"):
        with path.open("r+b") as file:
            content = file.read(_BOOT.stop)
            if len(content) == _BOOT.stop and any(content[_BOOT]):
                file.seek(_BOOT.start)
                file.write(chance.randbytes(16))
