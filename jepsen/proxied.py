"""A call through the proxy of a client's own node, with the client's cookie.

Knows what the answers of a proxy and of the application behind it (application.py) say of a call: what was refused for
sure has failed; of all else nobody knows. Does not know what the call does.
"""

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict
from http import HTTPStatus
from typing import Any, Final

from jepsen.session import DONE, OPEN, Session, Undone
from jepsen.workloads.base import Order
from tests.failover.network import inside

PROXY_PORT: Final = 8080
LIMIT_S: Final = 30.0
"""Longer than the proxy waits for a primary and an application for a lock, and shorter than a call may take."""
NOT_DONE: Final = "not_done"
BEHIND: Final = "Litereplica-Behind"
OTHER_HISTORY: Final = "Litereplica-Other-History"


def write(session: Session, workload: str, tag: str, order: Order) -> object:
    """What the application answered. Raises Undone when it certainly did nothing, and OSError when nobody knows."""
    return _ask(session, order.node, "POST", "/", _document(workload, tag, order))


def read(session: Session, workload: str, tag: str, order: Order) -> object:
    """The same of what only reads, which waits until the node is where the cookie says. Raises Undone if it is not."""
    question = urllib.parse.urlencode({"order": _document(workload, tag, order)})
    return _ask(session, order.node, "GET", f"/?{question}", None)


def _document(workload: str, tag: str, order: Order) -> str:
    return json.dumps({**asdict(order), "how": "", "workload": workload, "tag": tag})


def _ask(session: Session, node: str, method: str, path: str, body: str | None) -> object:
    session.stage, session.writes = OPEN, method != "GET"
    connection = http.client.HTTPConnection("127.0.0.1", PROXY_PORT, timeout=LIMIT_S)
    try:
        with inside(session.places[node].namespace):
            connection.connect()
        # From here on nobody knows what becomes of it, unless it is said.
        session.stage = DONE
        headers = {"Content-Type": "application/json"} | ({"Cookie": session.cookie} if session.cookie else {})
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    cookie = answer.headers.get("Set-Cookie")
    if cookie is not None:
        session.cookie = cookie.partition(";")[0]
    document = _json(said)
    session.answered_by = str(document.get("node", ""))
    return outcome(answer.status, dict(answer.headers), document, reads=method == "GET")


def outcome(status: int, headers: Mapping[str, str], said: Mapping[str, Any], *, reads: bool) -> object:
    """The value that the application answered. Raises Undone when it did nothing, and OSError when nobody knows."""
    if status != HTTPStatus.OK:
        words = f"proxy: {status} {said.get('error', '')} {said.get('message', '')}"
        if said.get("outcome") == NOT_DONE:
            raise Undone(words)
        raise OSError(words)
    if said["type"] == "fail":
        raise Undone(said["error"])
    if said["type"] != "ok":
        raise OSError(said["error"])
    for each in (BEHIND, OTHER_HISTORY):
        if reads and each in headers:
            raise Undone(each)
    return said["value"]


def _json(said: bytes) -> dict[str, Any]:
    try:
        found = json.loads(said)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
