"""Every nemesis on a real cluster: that what it breaks is really broken, and well again when it has ended.

One cluster for all of them. Each test begins on a cluster that is well; what it wrote and was acknowledged must be in
the cluster, or kept in ``diverged/``, in the end.
"""

import contextlib
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from jepsen.checkers import primaries
from jepsen.cluster.cluster import Cluster
from jepsen.cluster.machine import RELAY_HTTP_PORT, BreakableMachine
from jepsen.nemeses import NEMESES
from jepsen.nemeses.clock import Clock
from jepsen.nemeses.consul_leader import ConsulLeader
from jepsen.nemeses.consul_only import ConsulOnly
from jepsen.nemeses.disk_full import DiskFull
from jepsen.nemeses.failover import Failover
from jepsen.nemeses.flapping import Flapping
from jepsen.nemeses.halves import Halves
from jepsen.nemeses.io_error import IoError
from jepsen.nemeses.isolate_primary import IsolatePrimary
from jepsen.nemeses.kill import Kill
from jepsen.nemeses.kill_all import KillAll
from jepsen.nemeses.kill_applier import KillApplier
from jepsen.nemeses.kill_client import KillClient
from jepsen.nemeses.nemesis import Nemesis
from jepsen.nemeses.one_way import OneWay
from jepsen.nemeses.partition import machines
from jepsen.nemeses.pause import PauseLong, PauseShort
from jepsen.nemeses.peers_only import PeersOnly
from jepsen.nemeses.rejoin import Rejoin
from jepsen.nemeses.ring import Ring
from jepsen.nemeses.slow import Slow
from jepsen.nemeses.wipe_consul import WipeConsul
from tests.failover.network import inside
from tests.failover.servers import data_of
from tests.jepsen.breaking import DATABASE, TAKEOVER_S, Shared, calls_in, newest_timestamp_s
from tests.jepsen.ears import Ears, Pairs
from tests.support.sql import SqlError
from tests.support.waiting import wait_until

TTL_S: Final = 2.0
HANG_S: Final = 100.0
NODES: Final = ["a", "b", "c"]
CONSUL: Final = ["consul1", "consul2", "consul3"]


@pytest.fixture(scope="module")
def made() -> Iterator[Shared]:
    with Cluster(seed=1, small_disk=True, faults=True, proxies=True, ttl_s=TTL_S) as cluster:
        yield Shared(cluster)


@pytest.fixture
def shared(made: Shared, request: pytest.FixtureRequest) -> Iterator[Shared]:
    failed = request.session.testsfailed
    with made.cluster.limited(HANG_S):
        yield made
        if request.session.testsfailed != failed:
            print(made.cluster.logs())  # noqa: T201
            made.cluster.heal()


# --------------------------------------------------------------------------------------------------------- processes
def test_a_primary_that_is_killed_is_replaced_and_comes_back(shared: Shared) -> None:
    old = shared.primary()
    pid = old.pid
    with shared.broken(Kill("primary")) as said:
        assert said == f"primary {old.name}"
        assert not old.is_running
        shared.await_another_primary(old)
        shared.write_to_primary()
    assert old.pid != pid


def test_of_all_that_are_killed_nobody_is_left(shared: Shared) -> None:
    with shared.broken(KillAll("everything")):
        assert not any(each.is_running for each in shared.cluster.all)
        wait_until(lambda: not any(each.left_behind() for each in shared.cluster.all), "nobody is left", 1)
    shared.write_to_primary()


def test_an_applier_that_is_killed_is_replaced(shared: Shared) -> None:
    replica = shared.cluster.machine(shared.cluster.others(shared.primary())[0].name)
    old = {each.name: each.applier() for each in shared.cluster.machines}
    with shared.broken(KillApplier("replica")) as said:
        replica = shared.cluster.machine(said.split()[1])
        wait_until(lambda: _applier(replica) not in {0, old[replica.name]}, "another applier runs", 10)
    assert replica.log_lines("applier.died")


def _applier(node: BreakableMachine) -> int:
    try:
        return node.applier()
    except AssertionError:
        return 0


def test_whoever_has_clients_is_told_to_kill_one(shared: Shared) -> None:
    client = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def kill(_: random.Random) -> str:
        client.kill()
        return "client 3"

    shared.cluster.kill_client = kill
    with shared.broken(KillClient()) as said:
        assert said == "client 3"
        assert client.wait(10) == -9


def test_a_short_pause_is_no_reason_for_another_primary(shared: Shared) -> None:
    primary = shared.primary()
    epoch = primary.status()["epoch"]
    with shared.broken(PauseShort("primary")):
        assert primary.get("/status", 0.3) == (0, {})
    assert primary.status()["epoch"] == epoch
    shared.write(primary)


def test_after_a_long_pause_another_is_primary(shared: Shared) -> None:
    old = shared.primary()
    with shared.broken(PauseLong("primary")):
        shared.await_another_primary(old)
        assert old.role == ""
    assert old.role == "replica"


# ------------------------------------------------------------------------------------------------------------ Consul
def test_without_their_leader_consul_servers_have_another_and_it_comes_back(shared: Shared) -> None:
    with shared.broken(ConsulLeader()) as old:
        assert not shared.cluster.network.processes(old)
        wait_until(lambda: shared.cluster.consul.leader() not in {"", old}, "another leads", TAKEOVER_S)
    assert shared.cluster.network.processes(old)


def _consul_ids(shared: Shared) -> set[str]:
    """Made by chance by each server that begins with nothing."""
    return {(data_of(shared.cluster.folder) / each / "node-id").read_text() for each in CONSUL}


def test_a_wiped_consul_begins_anew_and_epochs_do_not(shared: Shared) -> None:
    old = _consul_ids(shared)
    epoch = shared.primary().status()["epoch"]
    with shared.broken(WipeConsul()):
        assert not old & _consul_ids(shared)
    shared.write_to_primary()
    assert shared.primary().status()["epoch"] >= epoch


# ----------------------------------------------------------------------------------------------------------- network
@pytest.fixture
def ears(shared: Shared) -> Iterator[Ears]:
    with Ears(shared.cluster) as found:
        # Who has never heard of somebody's address asks for it first, and that takes its time.
        wait_until(lambda: found.hear() == everybody(shared), "all hear all", 10)
        yield found


def everybody(shared: Shared) -> Pairs:
    names = machines(shared.cluster)
    return {(one, other) for one in names for other in names if one != other}


def both(ones: list[str], others: list[str]) -> Pairs:
    return {pair for one in ones for other in others if one != other for pair in ((one, other), (other, one))}


def test_an_isolated_primary_is_replaced_and_what_it_acknowledged_alone_is_kept(shared: Shared, ears: Ears) -> None:
    old = shared.primary_of_a_fresh_lease()
    with shared.broken(IsolatePrimary()) as said:
        shared.write(old)
        assert said == f"primary: {old.name}"
        assert everybody(shared) - ears.hear() == both([old.name], machines(shared.cluster))
        shared.await_another_primary(old)
        shared.write(shared.primary_of([each for each in shared.cluster.machines if each is not old]))
        wait_until(lambda: old.role == "replica", "the old one knows that it is none any more", TAKEOVER_S)
    assert ears.hear() == everybody(shared)


def _halves(said: str) -> Pairs:
    one, _, other = said.partition(" | ")
    return both(one.split(","), other.split(","))


PARTITIONS: Final[list[tuple[Nemesis, Callable[[str], Pairs]]]] = [
    (Halves("all"), _halves),
    (Halves("nodes"), _halves),
    (OneWay("mute"), lambda name: {(name, other) for other in [*NODES, *CONSUL] if other != name}),
    (OneWay("deaf"), lambda name: {(other, name) for other in [*NODES, *CONSUL] if other != name}),
    (OneWay("peer"), lambda said: {(said[0], said[-1])}),
    (ConsulOnly("primary", "replica"), lambda name: both([name], CONSUL)),
    (ConsulOnly("all"), lambda _: both(NODES, CONSUL)),
    (PeersOnly("primary", "replica"), lambda name: both([name], NODES)),
]


@pytest.mark.parametrize(
    ("nemesis", "lost"), PARTITIONS, ids=[f"{each.name} {each.kinds[0]}" for each, _ in PARTITIONS]
)
def test_who_is_parted_does_not_hear_the_other_and_everybody_else_does(
    shared: Shared, ears: Ears, nemesis: Nemesis, lost: Callable[[str], Pairs]
) -> None:
    with shared.broken(nemesis) as said:
        assert everybody(shared) - ears.hear() == lost(said.partition(": ")[2])
    assert ears.hear() == everybody(shared)


def test_on_a_ring_each_hears_another_majority(shared: Shared, ears: Ears) -> None:
    with shared.broken(Ring()):
        heard = ears.hear()
    around = {name: frozenset({name} | {one for one, other in heard if other == name}) for name in [*NODES, *CONSUL]}
    assert {len(each) for each in around.values()} == {5}
    assert len(set(around.values())) == 6


def test_a_flapping_node_is_heard_and_not_heard(shared: Shared, ears: Ears) -> None:
    with shared.broken(Flapping("node")) as said:
        name = said.partition(": ")[2]
        other = next(each for each in NODES if each != name)
        seen: list[bool] = []
        end = time.monotonic() + 2 * TTL_S
        while time.monotonic() < end and len(set(seen)) < 2:
            seen.append((name, other) in ears.hear())
    assert set(seen) == {True, False}
    assert ears.hear() == everybody(shared)


def _answer_s(shared: Shared, one: str, other: str) -> float:
    """How long one node waits for the word of another, as nodes reach each other."""
    with inside(shared.cluster.network.namespace(one)):
        wire = socket.socket()
    with wire:
        wire.settimeout(10)
        wire.connect((shared.cluster.network.addresses[other], RELAY_HTTP_PORT))
        began = time.monotonic()
        wire.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 ")
        return time.monotonic() - began


def test_what_is_slow_takes_its_time_in_both_directions(shared: Shared) -> None:
    with shared.broken(Slow("delay", delays_s=[0.3])):
        wait_until(lambda: _answer_s(shared, "a", "b") >= 0.6, "answers are late", 5)
        shared.write_to_primary()
    wait_until(lambda: _answer_s(shared, "a", "b") < 0.6, "answers are in time again", 5)


def test_of_the_packets_of_a_node_some_are_lost(shared: Shared, ears: Ears) -> None:
    with shared.broken(Slow("loss", shares_percent=[25])) as said:
        name = said.split()[-1]
        other = next(each for each in NODES if each != name)
        assert 60 < ears.count(name, other, 200) < 190
        assert 60 < ears.count(other, name, 200) < 190
    assert ears.count(name, other, 200) == 200


# -------------------------------------------------------------------------------------------------- disks and clocks
def test_on_a_full_disk_a_commit_fails_and_nothing_is_lost(shared: Shared) -> None:
    primary = shared.primary()
    with shared.broken(DiskFull("primary", left_bytes=[0])):
        with pytest.raises(SqlError) as found:
            shared.write(primary)
        assert found.value.code == "SQLITE_FULL"
    shared.write_to_primary()


@pytest.mark.parametrize("kind", ["write", "torn"])
def test_a_disk_that_fails_is_met_and_is_well_again(shared: Shared, kind: str) -> None:
    nemesis = IoError(kind, every=[1])
    primary = shared.primary()
    with shared.broken(nemesis, seed=7) as said:
        node = shared.cluster.machine(said.split()[1].rstrip(","))
        assert node is primary
        switches = node.switches
        assert switches is not None
        before = switches.met
        with pytest.raises(SqlError) as found:
            shared.write(primary)
        assert found.value.code.startswith("SQLITE_IOERR"), found.value
        assert switches.met > before
    shared.write_to_primary()


def test_a_disk_that_cannot_be_read_is_an_error_or_the_end_of_whoever_reads(shared: Shared) -> None:
    primary = shared.primary()
    switches = primary.switches
    assert switches is not None
    with shared.broken(IoError("read", every=[1]), seed=7) as said:
        assert said == f"read {primary.name}, one in 1"
        before = switches.met
        # SQLite takes a failed read for damage, and who has mapped what cannot be read dies of SIGBUS.
        with pytest.raises((SqlError, AssertionError), match=r"SQLITE_IOERR|SQLITE_CORRUPT|ended with -7"):
            shared.write(primary)
        assert switches.met > before
    shared.write_to_primary()


def test_after_a_failed_fsync_a_node_is_restarted_as_it_asks_for(shared: Shared) -> None:
    primary = shared.primary()
    with shared.broken(IoError("sync", every=[1]), seed=7) as said:
        assert said == f"sync {primary.name}, one in 1"
        pid = primary.pid
        with contextlib.suppress(SqlError):
            shared.write(primary)
        wait_until(lambda: b"restart this node" in primary.log_file.read_bytes(), "it asks for a restart", 20)
    assert primary.pid != pid
    shared.write_to_primary()


def test_a_torn_write_kills_a_node_and_it_comes_back_whole(shared: Shared) -> None:
    primary = shared.primary()
    with shared.broken(IoError("torn-die", every=[1]), seed=7):
        with pytest.raises((SqlError, AssertionError)):
            shared.write(primary)
        assert primary.wait_ended() == 137
    shared.write_to_primary()


def test_a_node_whose_clock_is_ahead_writes_that_time_down(shared: Shared) -> None:
    primary = shared.primary()
    with shared.broken(Clock("ahead", steps_s=[1000]), seed=2) as said:
        assert said == f"ahead {primary.name} by 1000 s"
        shared.write(primary)
        assert newest_timestamp_s(primary) > time.time() + 900
    shared.write_to_primary()


def test_a_machine_that_seems_to_have_slept_goes_on(shared: Shared) -> None:
    with shared.broken(Clock("slept", steps_s=[30])) as said:
        switches = shared.cluster.machine(said.split()[1]).switches
        assert switches is not None
        assert switches.boot_ns == 30 * 10**9
    wait_until(lambda: len(shared.cluster.primaries()) == 1, "one primary", TAKEOVER_S)
    shared.write_to_primary()


# --------------------------------------------------------------------------------------------------- planned changes
def test_a_planned_change_has_another_primary(shared: Shared) -> None:
    old = shared.primary()
    with shared.broken(Failover()) as said:
        assert said.startswith(f"{old.name} to "), said
        assert said.endswith(" answered 200"), said
        assert shared.primary() is not old


def test_a_node_that_was_away_gets_what_it_missed(shared: Shared) -> None:
    with shared.broken(Rejoin("away")) as said:
        node = shared.cluster.machine(said.split()[1])
        assert not node.is_running
        shared.write_to_primary()


def test_a_node_that_returns_with_an_old_directory_gets_what_it_had_before(shared: Shared) -> None:
    nemesis = Rejoin("restored")
    with shared.broken(nemesis) as said:
        node = shared.cluster.machine(said.split()[1])
        node.wait_ready()
        shared.write_to_primary()
        shared.cluster.await_settled()
        number = node.position(DATABASE)
        copied = node.data.with_name("data-copy").stat().st_ino
    assert node.data.stat().st_ino == copied
    assert node.position(DATABASE) == number


# ----------------------------------------------------------------------------------------------------------- the end
def test_each_has_been_tried_and_in_the_end_all_is_there(shared: Shared, request: pytest.FixtureRequest) -> None:
    ending = shared.cluster.ending([DATABASE], calls_in)
    assert [each.problem for each in ending.nodes] == ["", "", ""]
    ends = [each for node in ending.nodes for each in node.databases]
    assert len(ends) == 3
    assert len({(each.txid, each.checksum, each.computed, each.digest) for each in ends}) == 1
    assert ends[0].checksum == ends[0].computed
    assert ends[0].integrity == ("ok",)
    assert ending.present is not None
    assert set(shared.acknowledged) <= {*ending.present, *ending.kept}
    assert primaries.check((), ending.roles).valid is True
    shared.cluster.begin()
    again = shared.cluster.ending([DATABASE], calls_in)
    assert again.present == ending.present
    assert not again.kept
    assert len(again.log) < len(ending.log)
    if not request.session.testsfailed and request.session.testscollected > len(NEMESES):
        assert shared.tried == set(NEMESES)
