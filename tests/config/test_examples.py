"""The examples in config/ are right, and agree with each other."""

import re
from pathlib import Path

import pytest

from litereplica.config import Settings, load_settings
from litereplica.config.load import _KEYS

EXAMPLES = sorted((Path(__file__).parents[2] / "config").glob("*.yml"))


def test_there_is_an_example_for_each_use() -> None:
    assert [file.stem for file in EXAMPLES] == ["consul", "primary", "proxy", "replica", "standalone"]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_loads_in_an_empty_environment(file: Path) -> None:
    assert isinstance(load_settings(file, {}), Settings)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_starts_with_what_it_is_for(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith("# ")


def test_the_two_machines_name_the_same_primary_and_each_its_own_part() -> None:
    primary, replica = (load_settings(file, {}) for file in EXAMPLES if file.stem in {"primary", "replica"})
    assert primary.lease == replica.lease
    assert primary.lease.static.primary is not None
    assert primary.node.name == primary.lease.static.primary.name
    assert replica.node.name != primary.node.name
    assert primary.replication.listen.port == primary.lease.static.primary.replication.port


def test_every_key_that_a_user_may_set_is_in_an_example() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in EXAMPLES)
    for path in _KEYS:
        assert f"{path[-1]}:" in text, path


def test_what_the_consul_example_has_in_comments_loads_too(tmp_path: Path) -> None:
    text = EXAMPLES[0].read_text(encoding="utf-8").replace("http://127", "https://127")
    file = tmp_path / "consul.yml"
    file.write_text(re.sub(r"^    # ", "    ", text, flags=re.MULTILINE), encoding="utf-8")
    consul = load_settings(file, {"CONSUL_TOKEN": "secret"}).lease.consul
    assert consul.tls.ca == Path("/etc/consul/ca.pem")
    assert consul.token == "secret"
