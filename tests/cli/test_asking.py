"""``status`` and ``wait`` when there is no answer, and what they show when there is one."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from litereplica.cli.status import status_lines
from litereplica.cli.table import table
from litereplica.config.units import parse_duration
from tests.cli.running import CommandLine

TXID = "000000000000000a"


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """The URL of something that answers every connection with these bytes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with closing(connection):
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def response(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("arguments", [["status"], ["wait", "app.db", TXID], ["--json", "status"]])
def test_no_answer_is_exit_code_3_with_the_url_and_what_to_do(litereplica: CommandLine, arguments: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    ran = litereplica("--url", url, *arguments)
    assert (ran.code, ran.out) == (3, "")
    assert ran.error == (
        f"no answer from {url} ([Errno 111] Connection refused); "
        f"start the node with 'litereplica run', or name another one with --url"
    )


def test_the_node_is_found_by_option_then_variable_then_configuration(litereplica: CommandLine) -> None:
    first, second, third = (free_port() for _ in range(3))
    litereplica.configure(f"http: {{listen: '0.0.0.0:{third}'}}\n")
    variable = f"http://127.0.0.1:{second}"
    assert f"http://127.0.0.1:{third} " in litereplica("status").error
    assert f"http://127.0.0.1:{second} " in litereplica("status", LITEREPLICA_URL=variable).error
    assert (
        f"http://h.invalid:{first} "
        in litereplica("status", "--url", f"h.invalid:{first}", LITEREPLICA_URL=variable).error
    )


def test_a_proxy_of_the_environment_does_not_stand_between_nodes(litereplica: CommandLine) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with answering(response("200 OK", '{"node": "proxy"}')) as proxy:
        assert litereplica("status", "--url", url, HTTP_PROXY=proxy, http_proxy=proxy).code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["wait", "app.db", "12"],
            "'12' is not a TXID: write 16 hex digits, or a whole position as in the file app.db-pos",
        ),
        (
            ["wait", "app.db", TXID, "--timeout", "30"],
            "--timeout: expected a duration such as 500ms, 10s, 5m or 1h, found '30'",
        ),
        (["status", "--watch", "--json"], "--watch is for people, --json for programs: leave one out"),
    ],
)
def test_wrong_arguments_are_refused_before_a_node_is_asked(
    litereplica: CommandLine, arguments: list[str], message: str
) -> None:
    ran = litereplica(*arguments)
    assert (ran.code, ran.error) == (2, message)


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (response("404 Not Found", '{"error": "x", "message": "no such database"}'), 1, "no such database"),
        (response("409 Conflict", '{"error": "x", "message": "another history"}'), 1, "another history"),
        (response("400 Bad Request", '{"error": "x", "message": "no txid"}'), 2, "no txid"),
        (response("504 Gateway Timeout", '{"error": "x", "message": "time is up"}'), 3, "time is up"),
        (response("503 Service Unavailable", '{"error": "x", "message": "not ready"}'), 3, "not ready"),
        (response("200 OK", "<html>"), 3, "answered 200 and not as a node does"),
        (response("502 Bad Gateway", "{}"), 3, "answered 502 and not as a node does"),
        (b"SSH-2.0-OpenSSH\r\n", 3, "no answer from"),
        (b"", 3, "no answer from"),
    ],
)
def test_an_answer_becomes_an_exit_code_and_the_node_s_own_words(
    litereplica: CommandLine, answer: bytes, code: int, message: str
) -> None:
    with answering(answer) as url:
        ran = litereplica("--url", url, "wait", "app.db", TXID)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.error


def test_wait_prints_the_position_reached(litereplica: CommandLine) -> None:
    with answering(response("200 OK", f'{{"txid": "{TXID}", "checksum": "00000000000000ff"}}')) as url:
        ran = litereplica("wait", "app.db", f"{TXID}/00000000000000ff", "--url", url)
    assert (ran.code, ran.out) == (0, f"{TXID}/00000000000000ff\n")


@contextmanager
def capped(cap_s: float, reached_after: int) -> Iterator[tuple[str, list[float]]]:
    """A node that waits ``cap_s`` at most, and has the transaction at the n-th question; for how long it was asked."""
    asked: list[float] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (text,) = parse_qs(urlsplit(self.path).query)["timeout"]
            asked.append(parse_duration(text))
            if len(asked) < reached_after:
                time.sleep(min(asked[-1], cap_s))
                self._answer(504, {"error": "timeout", "message": f"app.db is not there after {cap_s:g} s"})
            else:
                self._answer(200, {"txid": TXID, "checksum": "00000000000000ff"})

        def _answer(self, code: int, document: dict[str, str]) -> None:
            body = json.dumps(document).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_wait_asks_again_when_the_node_waits_less_long_than_it_was_told(litereplica: CommandLine) -> None:
    with capped(0.2, reached_after=4) as (url, asked):
        ran = litereplica("--url", url, "wait", "app.db", TXID, "--timeout", "1h")
    assert (ran.code, ran.out) == (0, f"{TXID}/00000000000000ff\n"), ran.err
    assert len(asked) == 4


def test_wait_gives_up_at_its_own_time_and_not_before(litereplica: CommandLine) -> None:
    with capped(0.4, reached_after=100) as (url, asked):
        ran = litereplica("--url", url, "wait", "app.db", TXID, "--timeout", "3s")
    assert (ran.code, ran.out) == (3, "")
    assert ran.error.startswith("3 s are over: app.db is not there")
    assert len(asked) > 1
    assert asked == sorted(asked, reverse=True)


def test_a_status_shows_the_node_its_databases_and_its_replicas() -> None:
    lines = status_lines(
        {
            "node": "a",
            "role": "primary",
            "primary": "a",
            "epoch": 1,
            "ready": True,
            "databases": [
                {
                    "name": "app.db",
                    "txid": TXID,
                    "checksum": "00000000000000ff",
                    "journal_mode": "wal",
                    "page_size": 4096,
                    "pages": 12,
                    "lag_ms": 0,
                }
            ],
            "replicas": [
                {
                    "name": "b",
                    "connected": True,
                    "databases": {"app.db": {"logged": TXID, "applied": "0000000000000009"}},
                    "lag_ms": 12500,
                },
                {"name": "c\x1b[2J", "connected": False, "databases": {}, "lag_ms": None},
            ],
        }
    )
    assert lines == [
        "node     a",
        "role     primary",
        "primary  a",
        "epoch    1",
        "ready    yes",
        "",
        "DATABASE  TXID              CHECKSUM          JOURNAL MODE  PAGES  LAG",
        "app.db    000000000000000a  00000000000000ff  wal              12  0 ms",
        "",
        "REPLICA     CONNECTED  DATABASE  LOGGED            APPLIED           LAG",
        "b           yes        app.db    000000000000000a  0000000000000009  12 s",
        "'c\\x1b[2J'  no         -         -                 -                 -",
    ]


def test_a_node_without_databases_says_so() -> None:
    assert status_lines({"node": "a", "databases": []})[-1] == "no databases yet: create one in the mount"


def test_a_table_without_rows_is_nothing() -> None:
    assert table(("A", "B"), []) == []


def test_a_status_says_which_databases_are_damaged() -> None:
    document = {"node": "b", "ready": False, "databases": [{"name": "a.db", "damaged": [3]}, {"name": "b.db"}]}
    lines = [line for line in status_lines(document) if "damaged" in line]
    assert lines == ["a.db has damaged pages: litereplica verify names them"]
