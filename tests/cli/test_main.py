"""The command line as a whole: outcomes, exit codes, one line for an error."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import litereplica as package
from tests.cli.running import LIMIT_S, ROOT, CommandLine

NOBODY = "http://127.0.0.1:1"


def test_the_installed_command_is_this_program() -> None:
    command = Path(sysconfig.get_path("scripts")) / "litereplica"
    done = subprocess.run([command, "version"], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout.split()[:2] == ["litereplica", package.__version__]


def test_without_a_command_the_help_is_shown_as_wrong_usage(litereplica: CommandLine) -> None:
    ran = litereplica()
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("Usage: litereplica")


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command_and_imports_none(litereplica: CommandLine, option: str) -> None:
    ran = litereplica(option)
    assert ran.code == 0
    for name in ("config", "demo", "doctor", "failover", "history", "run", "status", "version", "wait"):
        assert f"\n  {name} " in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'. See 'litereplica --help'."),
        (["--nope"], "No such option '--nope'. See 'litereplica --help'."),
        (["wait", "app.db"], "Missing argument 'TXID'. See 'litereplica wait --help'."),
        (["config", "check"], "Missing argument 'FILE'. See 'litereplica config check --help'."),
        (["status", "extra"], "Got unexpected extra argument (extra). See 'litereplica status --help'."),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(litereplica: CommandLine, arguments: list[str], message: str) -> None:
    ran = litereplica(*arguments)
    assert (ran.code, ran.out, ran.error) == (2, "", message)


def test_a_wrong_configuration_is_one_line_and_exit_code_2(litereplica: CommandLine) -> None:
    litereplica.configure("node: {nam: a}\nlog: {level: loud}\n")
    ran = litereplica("config", "show")
    assert (ran.code, ran.out) == (2, "")
    assert ":1: unknown key 'node.nam'; did you mean 'node.name'? (and 1 more problem;" in ran.error


@pytest.mark.parametrize("arguments", [["--debug", "status", "--url", NOBODY], ["status", "--url", NOBODY, "--debug"]])
def test_a_traceback_is_shown_only_with_debug(litereplica: CommandLine, arguments: list[str]) -> None:
    ran = litereplica(*arguments)
    assert ran.code == 3
    assert ran.err.startswith("Traceback")
    assert ran.err.splitlines()[-1].startswith("litereplica: no answer from http://127.0.0.1:1 ")


@pytest.mark.parametrize("arguments", [["--json", "version"], ["version", "--json"]])
def test_shared_options_work_before_and_after_the_command(litereplica: CommandLine, arguments: list[str]) -> None:
    assert json.loads(litereplica(*arguments).out)["litereplica"] == package.__version__


def test_output_that_nobody_reads_ends_the_command_quietly(litereplica: CommandLine) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "litereplica", "config", "show"],
            env=litereplica.environment,
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=LIMIT_S,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def test_version_says_everything_a_report_needs(litereplica: CommandLine) -> None:
    ran = litereplica("version")
    assert ran.code == 0
    assert [line.split()[0] for line in ran.out.splitlines()] == [
        "litereplica",
        "python",
        "sqlite",
        "pyfuse3",
        "libfuse",
        "kernel",
    ]
    assert "not found" not in ran.out


def test_version_does_not_load_what_only_a_node_needs() -> None:
    program = (
        "import sys\nfrom litereplica.cli.main import main\n"
        "try:\n    main(['version'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'trio', 'pyfuse3', 'numpy', 'httpx', 'yaml', 'structlog'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
