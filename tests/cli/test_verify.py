"""``litereplica verify``: exit codes, the document, and what it says without a node.

Real damage: tests/cluster/test_scrub.py.
"""

import http.server
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.cli.running import CommandLine
from tests.support.nodes import Nodes, free_ports
from tests.support.sql import Session, make_database, run_sql

SOUND: Final[dict[str, Any]] = {
    "type": "result", "db": "app.db", "sound": True, "txid": "000000000000000a", "checksum": "00000000000000aa",
    "recomputed": "00000000000000aa", "page_checksums": "00000000000000aa", "log": "00000000000000aa",
    "page_size": 4096, "pages": 3, "log_pages": 1, "damaged_count": 0, "damaged": [],
}  # fmt: skip
PROGRESS: Final = {"type": "progress", "pages": 1, "of": 3}


@contextmanager
def answering(lines: Sequence[object], checksum: str | None = "00000000000000aa") -> Iterator[str]:
    """A node's twin: these lines for /verify, this checksum at any TXID for /position."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/position"):
                body = json.dumps({"db": "app.db", "txid": "000000000000000a", "checksum": checksum})
            else:
                body = "".join(f"{json.dumps(line) if isinstance(line, dict) else line}\n" for line in lines)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *_: object) -> None:  # noqa: A002  the library's name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_a_real_node_and_its_database(litereplica: CommandLine, nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path(), rows=3000)
    with Session(node.path()) as session:
        session.run("INSERT INTO t(v) VALUES('later')")
        shown = litereplica("--url", node.url, "verify", "app.db")
        assert shown.code == 0, shown
        assert shown.err == ""
        assert shown.out.splitlines()[-1].split() == ["sound", "yes"]
        found = json.loads(litereplica("--url", node.url, "--json", "verify", "app.db").out)
    position = f"{found['txid']}/{found['checksum']}"
    assert position == node.position()
    assert found["recomputed"] == found["page_checksums"] == found["log"] == found["checksum"]
    assert found["pages"] == run_sql(node.path(), "PRAGMA page_count")[0][0]
    itself = litereplica("--url", node.url, "verify", "app.db", "--against", node.url)
    assert itself.code == 0, itself
    assert itself.out.splitlines()[-1].split() == ["equal", "yes"]
    assert node.get("/position?db=app.db&txid=00000000000000ff")[1]["checksum"] is None
    missing = litereplica("--url", node.url, "verify", "other.db")
    assert missing.code == 1
    assert "other.db" in missing.error


def test_no_node_is_unavailable(litereplica: CommandLine) -> None:
    (port,) = free_ports(1)
    found = litereplica("--url", f"http://127.0.0.1:{port}", "verify", "app.db")
    assert found.code == 3
    assert found.out == ""


@pytest.mark.parametrize(
    ("lines", "code", "word"),
    [
        ([PROGRESS, SOUND], 0, ""),
        ([PROGRESS, SOUND | {"sound": False, "damaged_count": 2, "damaged": [3, 9]}], 4, "page 3, 9 of app.db"),
        ([SOUND | {"sound": False, "recomputed": "0000000000000bad"}], 4, "does not add up"),
        ([{"type": "error", "error": "corrupt", "message": "the log is damaged"}], 4, "the log is damaged"),
        ([{"type": "error", "error": "unavailable", "message": "ask again"}], 3, "ask again"),
        ([PROGRESS], 3, "before the result"),
        ([], 3, "before the result"),
        (["<html>"], 3, "not as a node does"),
        (["[1]"], 3, "not as a node does"),
    ],
)
def test_what_a_node_says_becomes_an_exit_code(
    litereplica: CommandLine, lines: list[object], code: int, word: str
) -> None:
    with answering(lines) as url:
        found = litereplica("--url", url, "verify", "app.db")
    assert found.code == code, found
    assert word in found.err


@pytest.mark.parametrize(
    ("theirs", "checksum", "code", "word"),
    [
        ({}, "", 0, ""),
        ({"checksum": "00000000000000bb"}, "", 4, "another history"),
        ({"txid": "000000000000000b", "checksum": "00000000000000bb"}, "00000000000000aa", 0, ""),
        ({"txid": "000000000000000b", "checksum": "00000000000000bb"}, "00000000000000cc", 4, "another history"),
        ({"txid": "000000000000000b", "checksum": "00000000000000bb"}, None, 3, "ask again"),
        ({"sound": False, "damaged_count": 1, "damaged": [2]}, "", 4, "page 2 of app.db"),
    ],
)
def test_two_nodes_are_compared_at_an_equal_position(
    litereplica: CommandLine, theirs: dict[str, Any], checksum: str | None, code: int, word: str
) -> None:
    with answering([SOUND]) as url, answering([SOUND | theirs], checksum) as other:
        found = litereplica("--url", url, "verify", "app.db", "--against", other)
    assert found.code == code, found
    assert word in found.err


def test_the_json_document_is_all_that_is_printed(litereplica: CommandLine) -> None:
    with answering([PROGRESS, SOUND]) as url:
        found = litereplica("--json", "--url", url, "verify", "app.db", "--against", url)
    document = json.loads(found.out)
    assert document["equal"] is True
    assert document["url"] == document["against"]["url"] == url
    assert "type" not in document
    assert "type" not in document["against"]


def test_without_a_node_the_data_directory_is_read(litereplica: CommandLine, nodes: Nodes) -> None:
    node = nodes.standalone()
    make_database(node.path(), rows=3000)
    position = node.position()
    node.stop()
    found = litereplica("-c", node.config, "verify", "app.db", "--json")
    assert found.code == 0, found
    document = json.loads(found.out)
    assert f"{document['txid']}/{document['checksum']}" == position
    assert str(node.data) in found.err
    with (node.data / "files" / "app.db").open("r+b") as file:
        file.seek(4096 + 2000)
        byte = file.read(1)[0]
        file.seek(4096 + 2000)
        file.write(bytes((byte ^ 1,)))
    assert litereplica("-c", node.config, "verify", "app.db").code == 4
    assert litereplica("--url", node.url, "-c", node.config, "verify", "app.db").code == 3
