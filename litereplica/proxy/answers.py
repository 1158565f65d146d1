"""Answers that are the proxy's own.

Knows their form, which is the one of the node's HTTP interface: ``{"error": CODE, "message": …}``. Does not know when
they are given.
"""

import json
from http import HTTPStatus
from typing import Final

from aiohttp import web

from litereplica.errors import LitereplicaError

# A new primary is there within its ttl; a client that asks again in a second is not far behind.
RETRY_AFTER_S: Final = 1


class Problem(LitereplicaError):
    """An answer that is not the application's."""

    def __init__(self, status: HTTPStatus, code: str, message: str, **facts: object) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.facts = facts


def explain(problem: Problem, *, keep_alive: bool = True) -> web.Response:
    """The answer to a request that ended so."""
    document = {"error": problem.code, "message": problem.message, **problem.facts}
    headers = {"Cache-Control": "no-store"}
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    answer = document_answer(document, problem.status, headers)
    if not keep_alive:
        answer.force_close()
    return answer


def document_answer(document: object, status: HTTPStatus, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON document."""
    text = json.dumps(document, ensure_ascii=False)
    return web.Response(text=text, status=status.value, headers=headers, content_type="application/json")
