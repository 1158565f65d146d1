"""``litereplica lock`` around its command; the file that it opens is an ordinary one here (tests/locks has nodes)."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.running import LIMIT_S, CommandLine

LOST = "here lost 2026-01-31T12:00:00.000Z it could not be renewed for 10 s"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    (tmp_path / "app.db-halt").write_text("", encoding="utf-8")
    return tmp_path / "app.db"


def python(program: str) -> list[str]:
    return ["--", sys.executable, "-c", program]


def test_the_command_s_output_and_exit_code_are_its_own(litereplica: CommandLine, database: Path) -> None:
    ran = litereplica("lock", database, *python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"))
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")


def test_options_after_the_dashes_are_the_command_s(litereplica: CommandLine, database: Path) -> None:
    ran = litereplica("lock", database, "--timeout", "5s", "--", "echo", "--timeout", "x", "--debug")
    assert (ran.code, ran.out) == (0, "--timeout x --debug\n")


def test_a_command_that_a_signal_ends_has_a_shell_s_exit_code(litereplica: CommandLine, database: Path) -> None:
    ran = litereplica("lock", database, *python("import os; os.kill(os.getpid(), 9)"))
    assert (ran.code, ran.err) == (128 + 9, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_is_passed_on(litereplica: CommandLine, database: Path, number: signal.Signals) -> None:
    program = (
        f"import signal, sys, time; signal.signal({int(number)}, lambda *_: sys.exit(9)); print('on', flush=True); "
        "time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "litereplica", "lock", str(database), *python(program)],
        env=litereplica.environment,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        process.send_signal(number)
        assert process.wait(LIMIT_S) == 9
    finally:
        process.kill()
        process.communicate()


def test_a_lock_that_is_lost_is_told_while_the_command_runs_and_its_success_is_none(
    litereplica: CommandLine, database: Path
) -> None:
    program = f"import pathlib, time; pathlib.Path('{database}-halt').write_text('{LOST}\\n'); time.sleep(3)"
    began = time.monotonic()
    ran = litereplica("lock", database, *python(program))
    assert time.monotonic() - began > 3
    assert ran.code == 3
    first, second = ran.err.splitlines()
    assert first == f"litereplica: the lock of {database} is lost: it could not be renewed for 10 s"
    assert second.endswith("(it could not be renewed for 10 s): others may have written meanwhile")


def test_a_lock_that_is_lost_at_the_last_moment_is_told_too(litereplica: CommandLine, database: Path) -> None:
    ran = litereplica("lock", database, *python(f"open('{database}-halt', 'w').write('{LOST}')"))
    assert ran.code == 3


def test_a_command_that_fails_after_the_lock_was_lost_keeps_its_exit_code(
    litereplica: CommandLine, database: Path
) -> None:
    ran = litereplica("lock", database, *python(f"open('{database}-halt', 'w').write('{LOST}'); raise SystemExit(5)"))
    assert ran.code == 5


def test_without_the_file_there_is_no_such_database(litereplica: CommandLine, tmp_path: Path) -> None:
    ran = litereplica("lock", tmp_path / "other.db", "--", "true")
    assert ran.code == 1
    assert ran.error.startswith(f"there is no database {tmp_path}/other.db in {tmp_path}: check the name")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--", "no-such-command"], 2, "'no-such-command' is not a command that can be run: nothing was locked"),
        (["--timeout", "soon", "--", "true"], 2, "--timeout: expected a duration such as 500ms, 10s, 5m or 1h, found"),
        ([], 2, "Missing argument"),
    ],
)
def test_a_wrong_command_line_locks_nothing(
    litereplica: CommandLine, database: Path, arguments: list[str], code: int, message: str
) -> None:
    ran = litereplica("lock", database, *arguments)
    assert ran.code == code
    assert message in ran.error


def test_a_mount_of_the_configuration_that_is_not_there_is_said(litereplica: CommandLine, tmp_path: Path) -> None:
    litereplica.configure(f"mount: {{dir: {tmp_path / 'mnt'}}}\n")
    ran = litereplica("lock", "app.db", "--", "true")
    assert ran.code == 3
    assert ran.error.startswith(f"nothing is mounted at {tmp_path / 'mnt'}: start the node")


def test_a_url_means_the_mount_of_that_node(litereplica: CommandLine) -> None:
    ran = litereplica("lock", "app.db", "--url", "http://127.0.0.1:1", "--", "true")
    assert ran.code == 3
    assert ran.error.startswith("no answer from http://127.0.0.1:1")


DESCRIPTORS = (
    "import os; print(sum(os.path.realpath(f'/proc/self/fd/{each}').endswith('app.db-halt') "
    "for each in os.listdir('/proc/self/fd')))"
)


@pytest.mark.parametrize(("option", "count"), [([], "1\n"), (["--close"], "0\n")])
def test_the_command_has_the_lock_s_file_open_unless_it_is_not_to(
    litereplica: CommandLine, database: Path, option: list[str], count: str
) -> None:
    ran = litereplica("lock", database, *option, *python(DESCRIPTORS))
    assert (ran.code, ran.out) == (0, count)


def test_the_command_s_end_is_seen_by_one_who_was_told_to_ignore_ends(litereplica: CommandLine, database: Path) -> None:
    program = "import signal, sys; sys.exit(3 if signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL else 4)"
    process = subprocess.Popen(
        [sys.executable, "-m", "litereplica", "lock", str(database), *python(program)],
        env=litereplica.environment,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),  # noqa: PLW1509  nothing else runs here
    )
    try:
        assert process.wait(LIMIT_S) == 3
    finally:
        process.kill()
        process.wait(LIMIT_S)
