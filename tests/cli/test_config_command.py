"""``litereplica config check`` and ``config show``."""

import json

import pytest
import yaml

from tests.cli.running import ROOT, CommandLine


@pytest.mark.parametrize("name", ["standalone", "primary", "replica"])
def test_an_example_is_found_right(litereplica: CommandLine, name: str) -> None:
    ran = litereplica("config", "check", ROOT / "config" / f"{name}.yml")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.endswith(f"{name}.yml: ok\n")


def test_every_problem_is_listed_on_its_own_line(litereplica: CommandLine) -> None:
    litereplica.configure("node: {nam: a}\nlog:\n  level: loud\n")
    ran = litereplica("config", "check", "litereplica.yml")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "litereplica: litereplica.yml:1: unknown key 'node.nam'; did you mean 'node.name'?",
        "litereplica: litereplica.yml:3: 'log.level': expected debug, info, warning or error, found 'loud'",
    ]


def test_problems_are_one_json_document_too(litereplica: CommandLine) -> None:
    litereplica.configure("nodes: {}\n")
    ran = litereplica("config", "check", "litereplica.yml", "--json")
    assert (ran.code, ran.err) == (2, "")
    assert json.loads(ran.out) == {
        "file": "litereplica.yml",
        "ok": False,
        "problems": [{"place": "litereplica.yml:1", "message": "unknown key 'nodes'; did you mean 'node'?"}],
    }
    litereplica.configure("")
    assert json.loads(litereplica("config", "check", "litereplica.yml", "--json").out)["ok"] is True


def test_a_missing_file_is_exit_code_2(litereplica: CommandLine) -> None:
    ran = litereplica("config", "check", "missing.yml")
    assert ran.code == 2
    assert ran.error.startswith("cannot read the configuration file missing.yml: No such file or directory;")


def test_the_settings_in_force_are_shown_as_a_file_and_as_json(litereplica: CommandLine) -> None:
    litereplica.configure("node: {name: a}\nhttp: {advertise: 'http://me:secret@10.0.0.1:1'}\n")
    shown = litereplica("config", "show", LITEREPLICA__LOG__LEVEL="debug")
    as_json = litereplica("--json", "config", "show", LITEREPLICA__LOG__LEVEL="debug")
    document = yaml.safe_load(shown.out)
    assert document == json.loads(as_json.out)
    assert document["node"]["name"] == "a"
    assert document["log"]["level"] == "debug"
    assert document["http"]["advertise"] == "http://me:***@10.0.0.1:1"


def test_the_file_of_the_command_line_is_taken(litereplica: CommandLine) -> None:
    (litereplica.directory / "other.yml").write_text("node: {name: other}\n", encoding="utf-8")
    for arguments in (["-c", "other.yml", "config", "show"], ["config", "show", "-c", "other.yml"]):
        assert yaml.safe_load(litereplica(*arguments).out)["node"]["name"] == "other"
