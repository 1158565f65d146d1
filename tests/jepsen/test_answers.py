import pytest

from jepsen.checkers import answers as checker
from jepsen.periods import periods
from tests.jepsen.making import Making


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ("commit: SQLITE_IOERR: disk I/O error", set()),
        ("begin: SQLITE_BUSY: database is locked", set()),
        ("the client was killed", set()),
        ("statement: SQLITE_CORRUPT: database disk image is malformed", {"damaged"}),
        ("statement: SQLITE_CORRUPT_INDEX: database disk image is malformed", {"damaged"}),
        ("open: SQLITE_NOTADB: file is not a database", {"damaged"}),
        ("no answer within 40 s", {"hung"}),
        ("the client ended with SIGBUS", {"ended"}),
        ("the client ended with 1", {"ended"}),
    ],
)
def test_what_no_client_may_be_told(error: str, expected: set[str]) -> None:
    making = Making()
    making.did(0, "add", 1)
    making.begin(1, "read")
    making.end(1, "info", error=error)
    result = checker.check(making.calls())
    assert {anomaly.kind for anomaly in result.anomalies} == expected
    assert result.valid is (not expected)
    assert result.counts["errors"] == 1


@pytest.mark.parametrize(
    ("nemesis", "error", "kind"),
    [
        ("kill", "the client ended with SIGBUS", ""),
        ("kill", "the client ended with SIGSEGV", "ended"),
        ("pause-long", "the client ended with SIGBUS", "ended"),
        ("kill", "no answer within 40 s", "hung"),
        ("kill", "statement: SQLITE_CORRUPT: database disk image is malformed", ""),
        ("io-error", "statement: SQLITE_CORRUPT: database disk image is malformed", ""),
        ("pause-long", "statement: SQLITE_CORRUPT: database disk image is malformed", "damaged"),
    ],
)
def test_what_a_client_may_meet_when_its_daemon_is_killed(nemesis: str, error: str, kind: str) -> None:
    making = Making()
    making.begin(1, "read")
    making.nemesis(f"start-{nemesis}")
    making.end(1, "info", error=error)
    making.nemesis(f"stop-{nemesis}")
    result = checker.check(making.calls(), periods(making.operations))
    assert [anomaly.kind for anomaly in result.anomalies] == ([kind] if kind else [])


@pytest.mark.parametrize(("seconds", "kinds"), [(checker.STARTS_S - 1, []), (checker.STARTS_S + 1, ["ended"])])
def test_a_dead_mount_is_there_until_its_daemon_has_been_started(seconds: float, kinds: list[str]) -> None:
    making = Making()
    making.nemesis("start-kill")
    making.nemesis("stop-kill")
    making.wait(seconds)
    making.begin(1, "read")
    making.end(1, "info", error="the client ended with SIGBUS")
    result = checker.check(making.calls(), periods(making.operations))
    assert [anomaly.kind for anomaly in result.anomalies] == kinds
