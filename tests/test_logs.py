"""Log lines, as a process writes them."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest
import structlog

from litereplica.logs import configure_logs

RFC3339_UTC = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_json_line_has_time_level_event_and_fields_in_order() -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    structlog.get_logger().warning("replica.connected", replica="b", lag_ms=3)
    line = json.loads(stream.getvalue())
    assert list(line) == ["ts", "level", "event", "replica", "lag_ms"]
    assert RFC3339_UTC.fullmatch(line["ts"])
    assert (line["level"], line["event"], line["replica"], line["lag_ms"]) == ("warning", "replica.connected", "b", 3)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("app.db", "app.db"),
        (12, "12"),
        ("two words", '"two words"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("line\nbreak", '"line\\nbreak"'),
        ('say "x"', '"say \\"x\\""'),
        ("\x1b[2J", '"\\u001b[2J"'),
        (None, "None"),
    ],
)
def test_a_text_line_is_one_line_of_key_and_value(value: object, shown: str) -> None:
    stream = io.StringIO()
    configure_logs("text", "info", stream)
    structlog.get_logger().info("file.refused", name=value)
    text = stream.getvalue()
    assert text.count("\n") == 1
    time, level, event, field = text.rstrip("\n").split(maxsplit=3)
    assert RFC3339_UTC.fullmatch(time)
    assert (level, event, field) == ("info", "file.refused", f"name={shown}")


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_lines_below_the_level_are_left_out(level: str, shown: int) -> None:
    stream = io.StringIO()
    configure_logs("text", level, stream)
    log = structlog.get_logger()
    for write in (log.debug, log.info, log.warning, log.error):
        write("event")
    assert len(stream.getvalue().splitlines()) == shown


def test_a_traceback_follows_its_line() -> None:
    stream = io.StringIO()
    configure_logs("text", "info", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        structlog.get_logger().exception("node.failed", node="a")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   node.failed node=a")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ValueError: broken"


@pytest.mark.parametrize("form", ["text", "json"])
def test_warnings_of_libraries_take_the_same_form_and_their_chatter_is_left_out(form: str) -> None:
    stream = io.StringIO()
    configure_logs("json" if form == "json" else "text", "debug", stream)
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("careful: %s", "it is hot")
    (line,) = stream.getvalue().splitlines()
    if form == "json":
        assert json.loads(line)["event"] == "careful: it is hot"
    else:
        assert line.endswith("warning careful: it is hot")
