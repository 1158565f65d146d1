"""Fixtures for every test folder."""

import signal
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.support.forge import Forge
from tests.support.nodes import Defaults, Nodes

_REPORTS: pytest.StashKey[dict[str, pytest.TestReport]] = pytest.StashKey()


def pytest_configure() -> None:
    """Tests send SIGINT to what they start, and a shell that runs us in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let fixtures know how their test went."""
    report = yield
    item.stash.setdefault(_REPORTS, {})[report.when or ""] = report
    return report


# Their files need minutes in all: begun last, one of them would leave the other process with nothing to do.
_LONG = (
    "jepsen",
    "cluster",
    "mount",
    "applier",
    "failover",
    "forward",
    "proxy",
    "crash",
    "replication",
    "roles",
    "cli",
)


# Most of these have a cluster of several nodes and Consul servers at work: two of them at once leave no processor for
# anybody's lease to be renewed in time, and the rest write gigabytes, which leaves no disk.
_ONE_AT_A_TIME = (
    "tests/jepsen/test_short_form.py", "tests/jepsen/test_nemeses.py", "tests/jepsen/test_mutations.py",
    "tests/jepsen/test_together.py", "tests/jepsen/test_end.py", "tests/forward/test_three_nodes.py",
    "tests/forward/test_two_nodes.py", "tests/failover/", "tests/cluster/test_large.py",
    "tests/cluster/test_lock_page.py", "tests/cluster/test_long_wal.py",
)  # fmt: skip


class _Files(LoadFileScheduling):  # type: ignore[misc]
    """A file stays in one process; those that need much of the machine are all in the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return "one at a time" if nodeid.startswith(_ONE_AT_A_TIME) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Files:
    """Instead of pytest-xdist's own."""
    return _Files(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (``--no-loadscope-reorder`` keeps that), folders together: some share what they run on."""
    ranks = {name: rank for rank, name in enumerate(_LONG)}

    def rank(item: pytest.Item) -> int:
        return -1 if item.nodeid.startswith(_ONE_AT_A_TIME) else ranks.get(item.path.parent.name, len(ranks))

    items.sort(key=rank)


# Folders and files of tests whose replicas forward what is written on them.
_FORWARDING = (
    "tests/apps/", "tests/cli/test_lock.py", "tests/cluster/test_own_commits.py", "tests/forward/", "tests/locks/",
    "tests/mount/test_forwarding", "tests/mount/test_full_disk_forwarding.py", "tests/proxy/",
)  # fmt: skip


# Their nodes are started as everybody starts one.
_AS_EVERYBODY = ("tests/cli/", "tests/http/")


@pytest.fixture(scope="session")
def _forge() -> Iterator[Forge]:
    forge = Forge()
    yield forge
    forge.close()


@pytest.fixture(scope="module", autouse=True)
def _defaults(request: pytest.FixtureRequest, _forge: Forge) -> Iterator[None]:
    if request.node.nodeid.startswith(_FORWARDING):
        Defaults.on_replica = "forward"
    if not request.node.nodeid.startswith(_AS_EVERYBODY):
        Defaults.forge = _forge
    yield
    Defaults.on_replica = "refuse"
    Defaults.forge = None


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """Makes real nodes; whatever the test did, nothing of them is left afterwards."""
    made = Nodes()
    yield made
    report = request.node.stash.get(_REPORTS, {}).get("call")
    if report is None or report.failed:
        made.print_logs()
    problems = made.tear_down()
    assert not problems, problems
