"""A few hundred crash points of traces that are recorded now; long runs: ``python -m tests.crash``.

A trace in which something is found is kept beside the temporary files, and the failure says how to repeat it.
"""

import json
import random
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from tests.crash.record import Recorded, record_primary, record_replica
from tests.crash.replay import Replay
from tests.support.nodes import Nodes

SEED: Final = random.SystemRandom().randrange(1 << 32)
POINTS: Final = 150
KINDS: Final = ("primary", "replica")


class Traces:
    """Both are recorded at once: most of the time they wait."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._recorded: dict[str, Recorded] = {}
        self._failures: dict[str, BaseException] = {}
        threads = [
            threading.Thread(target=self._record, args=("primary", self._primary)),
            threading.Thread(target=self._record, args=("replica", self._replica)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _record(self, kind: str, record: Callable[[Nodes, Path], Recorded]) -> None:
        nodes = Nodes()
        try:
            self._recorded[kind] = record(nodes, self.folder / f"{kind}.trace")
        except BaseException as error:  # noqa: BLE001  it is the test's that wants this trace
            nodes.print_logs()
            self._failures[kind] = error
        finally:
            problems = nodes.tear_down()
            if problems and kind not in self._failures:
                self._failures[kind] = AssertionError(problems)

    @staticmethod
    def _primary(nodes: Nodes, path: Path) -> Recorded:
        return record_primary(nodes, path, SEED, rounds=2, actions=30, rollback=True)

    @staticmethod
    def _replica(nodes: Nodes, path: Path) -> Recorded:
        return record_replica(nodes, path, SEED, rounds=3, actions=12, rollback=True)

    def replay(self, kind: str) -> Replay:
        if kind in self._failures:
            raise self._failures[kind]
        found = self._recorded[kind]
        return Replay(found.trace, groups=found.groups)

    def keep(self, kind: str) -> str:
        """For a failure: how to repeat it."""
        folder = Path(tempfile.gettempdir()) / "litereplica-crash-traces"
        folder.mkdir(exist_ok=True)
        kept = folder / f"{kind}-{SEED}.trace"
        shutil.copy(self.folder / f"{kind}.trace", kept)
        kept.with_suffix(".groups").write_text(json.dumps(self._recorded[kind].groups), encoding="utf-8")
        return f"python -m tests.crash --trace {kept} --seed {SEED} --points {POINTS} --point NUMBER"


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    return Traces(tmp_path_factory.mktemp("traces"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """A start after a crash has much to say."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    yield
    structlog.configure(**before)


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_crash_at_any_step_everything_acknowledged_is_there_and_nothing_else(traces: Traces, kind: str) -> None:
    replay = traces.replay(kind)
    assert not replay.oracle.problems, f"{replay.oracle.problems}; {traces.keep(kind)}"
    result = replay.run(SEED, POINTS)
    assert result.points == POINTS
    failures = [each for each in result.failures if not each.strict_only]
    assert not failures, "\n".join([*map(str, failures), traces.keep(kind)])


def test_a_disk_that_does_not_sync_is_noticed(traces: Traces) -> None:
    replay = traces.replay("primary")
    lying = [step for step in replay.trace if step[0] != "synced"]
    assert Replay(lying).run(SEED, 100).failures


def test_a_directory_that_is_not_synced_is_noticed(traces: Traces) -> None:
    replay = traces.replay("primary")
    lying = [step for step in replay.trace if step[0] != "dirsynced"]
    assert Replay(lying).run(SEED, 100).failures
