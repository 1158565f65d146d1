"""The systems that are measured: directories that a client writes to, and how each comes to be and ends.

Knows the plain disk, the C pass-through, litereplica alone, litereplica with a replica attached, and peers that
somebody else has mounted. The questions see only names and directories.
"""

import contextlib
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.mounts import is_mounted, unmount_below
from benchmarks.harness.node import new_node
from benchmarks.harness.processes import client, daemon, wait_until

PLAIN = "plain disk"
FLOOR = "C pass-through"
ALONE = "litereplica"
PAIR = "litereplica+replica"
OWN_SYSTEMS = (PLAIN, FLOOR, ALONE, PAIR)

FLOOR_SOURCE = Path(__file__).resolve().parents[1] / "floor.c"
FLOOR_LIMIT_S = 10.0
COMPILER_LIMIT_S = 120.0
REPLICA_LIMIT_S = 120.0


@dataclass(frozen=True, slots=True)
class System:
    """`directory` is written to; `replica`, if there is one, shows the same databases on another mount.

    `processes` names the daemons behind it whose memory and wake-ups are its own: (name, process id).
    """

    name: str
    directory: Path
    replica: Path | None = None
    processes: tuple[tuple[str, int], ...] = ()

    @property
    def readable(self) -> Path:
        """Where a reader sees what was written to `directory`, as far away as this system can show it."""
        return self.replica or self.directory

    def settle(self, database: str, table: str, last: int, limit_s: float = REPLICA_LIMIT_S) -> None:
        """Waits until the replica shows a row, so that its work does not run on into the next system's round."""
        if self.replica:
            client("await_row", path=self.replica / database, table=table, last=last, seconds=limit_s)


@dataclass(frozen=True, slots=True)
class Lab:
    """Makes systems in the run's folder. `floor_program` is the built floor; `poll_us` its busy wait."""

    folder: Path
    floor_program: Path
    poll_us: int
    peers: tuple[System, ...]
    wanted: tuple[str, ...]

    @contextlib.contextmanager
    def home(self, question: str, name: str) -> Iterator[Path]:
        """A folder for one system in one question; emptied afterwards, so that disk space is needed once."""
        home = self.folder / question / name.replace(" ", "-").replace("+", "-")
        home.mkdir(parents=True)
        try:
            yield home
        finally:
            if left := unmount_below(home):
                raise BenchmarkError(f"{left[0]} is still mounted; nothing below {home} was removed")
            shutil.rmtree(home)

    @contextlib.contextmanager
    def plain(self, question: str) -> Iterator[System]:
        """A folder on the disk that everything else lies on too."""
        with self.home(question, PLAIN) as home:
            yield System(PLAIN, home)

    @contextlib.contextmanager
    def floor(self, question: str) -> Iterator[System]:
        """The C pass-through, mounted."""
        with self.home(question, FLOOR) as home:
            backing, mount = home / "backing", home / "mount"
            backing.mkdir()
            mount.mkdir()
            command = [str(self.floor_program), "-p", str(self.poll_us), str(backing), str(mount)]
            with daemon(command, home / "log", FLOOR_LIMIT_S) as process:
                wait_until(lambda: is_mounted(mount), FLOOR_LIMIT_S, "the C pass-through mounts", process)
                yield System(FLOOR, mount, processes=((FLOOR, process.pid),))

    @contextlib.contextmanager
    def alone(self, question: str) -> Iterator[System]:
        """One standalone node, ready."""
        with self.home(question, ALONE) as home, new_node(home, "alone", alone=True).running() as running:
            yield System(ALONE, running.node.mount, processes=((ALONE, running.process.pid),))

    @contextlib.contextmanager
    def pair(self, question: str) -> Iterator[System]:
        """A static primary and its replica, both ready."""
        with self.home(question, PAIR) as home:
            first = new_node(home, "primary", alone=False)
            second = new_node(home, "replica", alone=False, primary=first)
            with first.running() as primary, second.running() as replica:
                processes = ((f"{ALONE} primary", primary.process.pid), (f"{ALONE} replica", replica.process.pid))
                yield System(PAIR, first.mount, second.mount, processes)

    @contextlib.contextmanager
    def systems(self, question: str, names: tuple[str, ...], *, peers: bool) -> Iterator["Present"]:
        """Those of `names` that were asked for, and the peers, all running at once; who failed to start is named."""
        makers: dict[str, Callable[[str], contextlib.AbstractContextManager[System]]] = {
            PLAIN: self.plain, FLOOR: self.floor, ALONE: self.alone, PAIR: self.pair,
        }  # fmt: skip
        stack = contextlib.ExitStack()
        present = Present([], {})
        try:
            for name in names:
                if name in self.wanted:
                    try:
                        present.systems.append(stack.enter_context(makers[name](question)))
                    except BenchmarkError as error:
                        present.failures[name] = str(error)
            if peers:
                present.systems.extend(self.peers)
            yield present
        finally:
            # A system that does not end cleanly is a finding too, and must not cost the figures.
            try:
                stack.close()
            except BenchmarkError as error:
                present.failures["stopping"] = str(error)


@dataclass(frozen=True, slots=True)
class Present:
    """The systems of one question that started, and what the others said."""

    systems: list[System]
    failures: dict[str, str]


def build_floor(folder: Path) -> Path:
    """Compiles the C pass-through. BenchmarkError: no compiler, or no libfuse3 headers."""
    program = folder / "floor"
    try:
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True
        ).stdout
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(FLOOR_SOURCE), *shlex.split(flags)]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=COMPILER_LIMIT_S)
    except FileNotFoundError as error:
        raise BenchmarkError(
            f"{error.filename} is missing: the C pass-through needs gcc, pkg-config, libfuse3-dev"
        ) from None
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"building the C pass-through: {error.stderr.strip()}") from None
    return program
