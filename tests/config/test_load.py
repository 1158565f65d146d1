"""From a file and the environment to settings, and every way in which that goes wrong."""

import socket
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from litereplica.config import Address, Settings, WrongSettings, find_file, load_settings, settings_document
from litereplica.config.source import Problem, Tree, read_yaml
from litereplica.errors import Misconfigured

PRIMARY = "{name: a, http: 'http://10.0.0.1:20202', replication: '10.0.0.1:20203'}"
SECTIONS = "node, mount, data, http, replication, lease, writes, proxy, exec, log"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An absent configuration file in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    return Path("litereplica.yml")


def load(file: Path, text: str, **environ: str) -> Settings:
    file.write_text(text, encoding="utf-8")
    return load_settings(file, environ)


def problems(file: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(WrongSettings) as caught:
        load(file, text, **environ)
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    assert caught.value.message.startswith(str(caught.value.problems[0]))
    return [str(problem) for problem in caught.value.problems]


# ------------------------------------------------------------------------------------------------- where it is found
def test_without_a_file_the_defaults_hold(file: Path) -> None:
    settings = load_settings(None, {})
    assert not file.exists()
    assert settings == Settings()
    assert settings.node.name == socket.gethostname()
    assert settings.node.candidate is True
    assert settings.mount.dir == Path("/litereplica")
    assert settings.mount.allow_other is False
    assert settings.data.dir == Path("/var/lib/litereplica")
    assert settings.data.compression == "none"
    assert (settings.data.retention.age_s, settings.data.retention.size_bytes) == (600.0, 2**30)
    assert settings.http.listen == Address("127.0.0.1", 20202)
    assert settings.http.advertise is None
    assert settings.replication.listen == Address("127.0.0.1", 20203)
    assert settings.replication.advertise is None
    assert (settings.replication.heartbeat_s, settings.replication.timeout_s) == (2.0, 6.0)
    assert settings.lease.type == "standalone"
    assert settings.lease.static.primary is None
    assert settings.writes.on_replica == "forward"
    assert (settings.writes.conflict_lease_s, settings.writes.timeout_s) == (1.0, 10.0)
    assert settings.exec == ()
    assert (settings.log.format, settings.log.level) == ("text", "info")


def test_the_command_line_wins_over_the_variable_and_that_over_the_usual_places(file: Path) -> None:
    assert find_file(None, {}) is None
    file.touch()
    assert find_file(None, {}) == file
    assert find_file(None, {"LITEREPLICA_CONFIG": "/etc/other.yml"}) == Path("/etc/other.yml")
    assert find_file(Path("given.yml"), {"LITEREPLICA_CONFIG": "/etc/other.yml"}) == Path("given.yml")
    assert find_file(None, {"LITEREPLICA_CONFIG": ""}) == file


@pytest.mark.parametrize("environ", [{}, {"LITEREPLICA_CONFIG": "missing.yml"}])
def test_a_file_that_was_asked_for_and_is_missing_is_an_error(file: Path, environ: dict[str, str]) -> None:
    assert not file.exists()
    with pytest.raises(Misconfigured, match=r"cannot read the configuration file missing.yml: No such file"):
        load_settings(None if environ else Path("missing.yml"), environ)


def test_a_directory_in_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="Is a directory"):
        load_settings(tmp_path, {})


def test_a_file_in_another_encoding_is_an_error_with_its_line(file: Path) -> None:
    file.write_bytes(b"node:\n  name: caf\xe9\n")
    with pytest.raises(Misconfigured, match=r"^litereplica.yml:2: not text in UTF-8"):
        load_settings(file, {})


def test_a_file_of_any_size_is_not_read_into_memory(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(Misconfigured, match="larger than 1 MiB"):
        load_settings(file, {})


# ------------------------------------------------------------------------------------------------------- what it says
def test_every_key_is_read(file: Path) -> None:
    settings = load(
        file,
        """
        node:        {name: b, candidate: false}
        mount:       {dir: /mnt/db/, allow_other: yes}
        data:        {dir: /srv/data, compression: zstd, retention: {age: 90s, size: 64MiB}}
        http:        {listen: "[::1]:8080", advertise: "http://10.0.0.2:20202/"}
        replication: {listen: "0.0.0.0:9000", advertise: "10.0.0.2:9000", heartbeat: 500ms, timeout: 2s}
        lease:
          type: static
          static: {primary: {name: a, http: "http://10.0.0.1:20202", replication: "10.0.0.1:20203"}}
        writes: {on_replica: lock, conflict_lease: 500ms, timeout: 20s}
        exec: ["myapp", "--db", "/mnt/db/app.db"]
        log: {format: json, level: debug}
        """,
    )
    assert settings.node.name == "b"
    assert settings.node.candidate is False
    assert settings.mount.dir == Path("/mnt/db")
    assert settings.mount.allow_other is True
    assert settings.data.compression == "zstd"
    assert (settings.data.retention.age_s, settings.data.retention.size_bytes) == (90.0, 64 * 2**20)
    assert settings.http.listen == Address("::1", 8080)
    assert settings.http.advertise == "http://10.0.0.2:20202"
    assert settings.replication.advertise == Address("10.0.0.2", 9000)
    assert (settings.replication.heartbeat_s, settings.replication.timeout_s) == (0.5, 2.0)
    assert settings.lease.type == "static"
    primary = settings.lease.static.primary
    assert primary is not None
    assert (primary.name, primary.http) == ("a", "http://10.0.0.1:20202")
    assert primary.replication == Address("10.0.0.1", 20203)
    assert settings.writes.on_replica == "lock"
    assert (settings.writes.conflict_lease_s, settings.writes.timeout_s) == (0.5, 20.0)
    assert settings.exec == ("myapp", "--db", "/mnt/db/app.db")
    assert (settings.log.format, settings.log.level) == ("json", "debug")


@pytest.mark.parametrize(
    "text",
    ["", "# only a comment\n", "---\n", "node:\n", "node: {}\n", "http: {advertise: }\n", "http: {advertise: ''}\n"],
)
def test_nothing_and_empty_mean_the_default(file: Path, text: str) -> None:
    assert load(file, text) == Settings()


@pytest.mark.parametrize("name", ["on", "no", "5", "1e3", "0x10", "2026-01-01", "a:b"])
def test_a_name_is_text_whatever_yaml_would_make_of_it(file: Path, name: str) -> None:
    assert load(file, f"node: {{name: '{name}'}}").node.name == name
    assert load(file, f"node:\n  name: {name}\n").node.name == name


@pytest.mark.parametrize("text", ["myapp -a 'b c'", "[myapp, -a, b c]"])
def test_a_command_is_a_list_or_a_line_as_for_a_shell(file: Path, text: str) -> None:
    assert load(file, f"exec: {text}").exec == ("myapp", "-a", "b c")
    assert load(file, "", LITEREPLICA__EXEC=text).exec == ("myapp", "-a", "b c")


# --------------------------------------------------------------------------------------------------------- variables
@pytest.mark.parametrize(
    ("value", "environ", "name"),
    [
        ("${NAME}", {"NAME": "a"}, "a"),
        ("x-${NAME}-${NAME}", {"NAME": "a"}, "x-a-a"),
        ("${NAME:-b}", {}, "b"),
        ("${NAME:-b}", {"NAME": ""}, "b"),
        ("${NAME:-b}", {"NAME": "a"}, "a"),
        ("$${NAME}", {"NAME": "a"}, "${NAME}"),
        ("$NAME", {"NAME": "a"}, "$NAME"),
        ("${NAME}", {"NAME": "${OTHER}"}, "${OTHER}"),
        ("${NAME}", {"NAME": "b,c:#'d\"[e]{f}"}, "b,c:#'d\"[e]{f}"),
    ],
)
def test_variables_are_expanded_once_and_stay_one_value(
    file: Path, value: str, environ: dict[str, str], name: str
) -> None:
    assert load(file, f"node:\n  name: {value}\n", **environ).node.name == name
    assert load(file, f"node: {{name: {value}, candidate: true}}\n", **environ).node.name == name
    assert load(file, f'node: {{name: "{value}"}}\n', **environ).node.name == name


def test_a_variable_can_hold_any_type_and_an_address_with_colons(file: Path) -> None:
    settings = load(
        file,
        "mount: {allow_other: '${OTHER}'}\nhttp: {listen: ${LISTEN}}\ndata: {retention: {age: ${AGE:-5m}}}\n",
        OTHER="true",
        LISTEN="[::1]:80",
    )
    assert settings.mount.allow_other is True
    assert settings.http.listen == Address("::1", 80)
    assert settings.data.retention.age_s == 300.0


def test_a_variable_without_a_value_is_named_with_its_line(file: Path) -> None:
    assert problems(file, "\nnode:\n  name: ${NODE_NAME}\n") == [
        "litereplica.yml:3: the variable NODE_NAME is not set; set it, or write ${NODE_NAME:-default}"
    ]


def test_a_variable_in_a_comment_is_not_looked_up(file: Path) -> None:
    assert load(file, "# ${NOT_SET}\nnode: {name: a} # ${NOT_SET}\n").node.name == "a"


def test_a_broken_variable_is_refused(file: Path) -> None:
    (problem,) = problems(file, "node:\n  name: ${not closed\n")
    assert problem.startswith("litereplica.yml:2: expected ${VAR} or ${VAR:-default}")


# ------------------------------------------------------------------------------------------------------- environment
@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("LITEREPLICA__NODE__NAME", "env", lambda s: s.node.name == "env"),
        ("LITEREPLICA__MOUNT__ALLOW_OTHER", "true", lambda s: s.mount.allow_other),
        ("LITEREPLICA__DATA__RETENTION__SIZE", "1MiB", lambda s: s.data.retention.size_bytes == 2**20),
        ("LITEREPLICA__HTTP__LISTEN", "127.0.0.1:1", lambda s: s.http.listen.port == 1),
        ("LITEREPLICA__LOG__LEVEL", "error", lambda s: s.log.level == "error"),
        ("LITEREPLICA__HTTP__LISTEN", "", lambda s: s.http.listen.port == 20202),
    ],
)
def test_the_environment_wins_over_the_file(file: Path, name: str, value: str, read: object) -> None:
    assert callable(read)
    settings = load(file, "node: {name: file}\nhttp: {listen: '127.0.0.1:9'}\n", **{name: value})
    assert read(settings)


def test_the_environment_alone_can_set_a_whole_section() -> None:
    settings = load_settings(
        None,
        {
            "LITEREPLICA__LEASE__TYPE": "static",
            "LITEREPLICA__NODE__NAME": "b",
            "LITEREPLICA__LEASE__STATIC__PRIMARY__NAME": "a",
            "LITEREPLICA__LEASE__STATIC__PRIMARY__HTTP": "http://10.0.0.1:20202",
            "LITEREPLICA__LEASE__STATIC__PRIMARY__REPLICATION": "10.0.0.1:20203",
        },
    )
    assert settings.lease.static.primary is not None
    assert settings.lease.static.primary.name == "a"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("LITEREPLICA__LEASE__TYP", "x", "unknown key 'lease.typ'; did you mean 'lease.type'?"),
        ("LITEREPLICA__LEASE", "x", "'lease' is a section; set a key in it, such as 'lease.type'"),
        ("LITEREPLICA__LOG__LEVEL", "loud", "'log.level': expected debug, info, warning or error, found 'loud'"),
        ("LITEREPLICA__EXEC", "[a", "'exec': expected a list of texts, found '[a'"),
        ("LITEREPLICA__EXEC", "'a", "'exec': No closing quotation"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_by_its_variable(
    file: Path, name: str, value: str, message: str
) -> None:
    assert problems(file, "", **{name: value}) == [f"{name}: {message}"]


def test_other_variables_of_ours_are_not_taken_for_keys(file: Path) -> None:
    assert load(file, "", LITEREPLICA_URL="http://h:1", LITEREPLICA_OTHER="x") == Settings()


# ---------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("node:\n  nam: a", "2: unknown key 'node.nam'; did you mean 'node.name'?"),
        ("leese: {type: static}", "1: unknown key 'leese'; did you mean 'lease'?"),
        ("compression: lz4", "1: unknown key 'compression'; did you mean 'data.compression'?"),
        ("mount: {path: /a}", "1: unknown key 'mount.path'; known here: mount.dir, mount.allow_other, mount.guard"),
        ("data: {retention: {agee: 1s}}", "1: unknown key 'data.retention.agee'; did you mean 'data.retention.age'?"),
        ("<<: {a: b}", f"1: unknown key '<<'; known here: {SECTIONS}"),
        ("${KEY}: 1", f"1: unknown key '${{KEY}}'; known here: {SECTIONS}"),
        ("node: {candidate: maybe}", "1: 'node.candidate': expected true or false, found 'maybe'"),
        ("node: a", "1: 'node': expected a section (lines of 'key: value'), found 'a'"),
        ("node: [a]", "1: 'node': expected a section (lines of 'key: value'), found ['a']"),
        ("node: {name: [a]}", "1: 'node.name': expected one value, found a list"),
        ("http: {listen: {a: b}}", "1: 'http.listen': expected one value, found a section"),
        ("exec: {a: b}", "1: 'exec': expected one value, found a section"),
        ("data:\n  compression: gzip", "2: 'data.compression': expected none, lz4 or zstd, found 'gzip'"),
        (
            "http: {listen: here}",
            "1: 'http.listen': expected host:port, such as 10.0.0.1:20203 or [::1]:20203, found 'here'",
        ),
        ("http: {advertise: h:1}", "1: 'http.advertise': expected a URL such as http://10.0.0.1:20202, found 'h:1'"),
        (
            "data: {retention: {age: 10}}",
            "1: 'data.retention.age': expected a duration such as 500ms, 10s, 5m or 1h, found '10'",
        ),
        (
            "data: {retention: {size: lots}}",
            "1: 'data.retention.size': expected a size such as 64MiB, 1GiB, 10MB or 512, found 'lots'",
        ),
        ("node: {name: a}\nnode: {name: b}", "2: 'node' is given twice, first in line 1"),
        ("- a", "1: expected sections such as 'mount:'"),
        ("text", "1: expected sections such as 'mount:'"),
        ("? [a]\n: b", "1: expected a plain word as a key"),
        ("exec: [[a]]", "1: 'exec' takes a list of plain texts"),
        (
            "lease:\n  consul: {urls: [consul.local]}",
            "2: 'lease.consul.urls': expected a URL such as http://10.0.0.1:20202, found 'consul.local'",
        ),
        ("node: {priority: high}", "1: 'node.priority': expected a whole number such as 0, 10 or -5, found 'high'"),
        ("writes: {on_replica: send}", "1: 'writes.on_replica': expected forward, lock or refuse, found 'send'"),
        ("lease: {type: raft}", "1: 'lease.type': expected standalone, static or consul, found 'raft'"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_was_expected(file: Path, text: str, problem: str) -> None:
    assert problems(file, text) == [f"litereplica.yml:{problem}"]


@pytest.mark.parametrize("text", ["node: {name: a", "node:\n   name: a\n  b: c\n", "a: b: c", "\t- x", "a: *b"])
def test_what_is_not_yaml_is_one_problem_with_its_line(file: Path, text: str) -> None:
    (problem,) = problems(file, text)
    place, _, message = problem.partition(": ")
    assert place.startswith("litereplica.yml:")
    assert message.startswith("not YAML: ")


def test_a_document_that_contains_itself_ends(file: Path) -> None:
    assert "litereplica.yml:1: 'a' is nested too deeply" in problems(file, "a: &a {b: *a}\n")


def test_all_problems_are_reported_together_in_the_order_of_the_file(file: Path) -> None:
    text = "node:\n  nam: a\nlog:\n  level: loud\nmount:\n  dri: /x\nexec: ${NOPE}\n"
    found = problems(file, text, LITEREPLICA__X="1")
    assert [problem.split(": ")[0] for problem in found] == [
        "LITEREPLICA__X",
        "litereplica.yml:2",
        "litereplica.yml:4",
        "litereplica.yml:6",
        "litereplica.yml:7",
    ]


def test_the_message_is_one_line_that_counts_the_rest(file: Path) -> None:
    with pytest.raises(WrongSettings) as caught:
        load(file, "a: 1\nb: 2\nc: 3\n")
    assert caught.value.message.startswith("litereplica.yml:1: unknown key 'a'; known here:")
    assert caught.value.message.endswith("(and 2 more problems; 'litereplica config check' lists all)")


@given(st.text(max_size=200), st.dictionaries(st.just("A"), st.text(max_size=5), max_size=1))
@example("node: &a {name: ${A}}\nmount: *a\n", {"A": "\x00"})
@example("\ue000" + "0\ue001: ${A:-x}", {})
@example("!!python/object/apply:os.system ['true']", {})
@example("a: !!binary x", {})
def test_any_text_is_read_or_has_a_problem_with_a_place(text: str, environ: dict[str, str]) -> None:
    tree = read_yaml("f.yml", text, environ)
    assert isinstance(tree, Tree)
    for problem in tree.problems:
        assert isinstance(problem, Problem)
        assert problem.place.startswith("f.yml")
        assert problem.message


# ------------------------------------------------------------------------------------------------- shown and read back
@pytest.mark.parametrize(
    "text",
    [
        "",
        f"lease: {{type: static, static: {{primary: {PRIMARY}}}}}\nnode: {{name: b}}\nexec: [a, '', 'b c']\n",
        "writes: {on_replica: refuse, conflict_lease: 0, timeout: 1m}",
        "data: {compression: lz4, retention: {age: 1500ms, size: 1000}}\nhttp: {listen: '[::1]:0'}\n",
    ],
)
def test_what_is_shown_can_be_loaded_again(file: Path, text: str) -> None:
    settings = load(file, text)
    assert load(file, yaml.safe_dump(settings_document(settings))) == settings


def test_shown_settings_hide_passwords(file: Path) -> None:
    shown = settings_document(
        load(file, "http: {advertise: 'http://me:secret@h:1'}\nexec: [x, 'http://me:secret@h']\n")
    )
    assert "secret" not in str(shown)
    assert shown["http"]["advertise"] == "http://me:***@h:1"


# ------------------------------------------------------------------------------------------------------------- Consul
def test_a_token_is_used_and_never_shown(file: Path) -> None:
    settings = load(file, "lease: {consul: {token: '${TOKEN}'}}", TOKEN="s3cret")
    assert settings.lease.consul.token == "s3cret"
    assert "s3cret" not in repr(settings)
    assert "s3cret" not in str(settings_document(settings))
    assert settings_document(settings)["lease"]["consul"]["token"] == "***"
    assert settings_document(Settings())["lease"]["consul"]["token"] == ""


def test_agents_come_from_the_environment_as_words(file: Path) -> None:
    settings = load(file, "", LITEREPLICA__LEASE__CONSUL__URLS="http://a:8500 https://b:8501/")
    assert settings.lease.consul.urls == ("http://a:8500", "https://b:8501")
