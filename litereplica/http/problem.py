"""Answers that are not 200.

Knows how our outcomes become codes: this is the one place where HTTP translates them. An error is
``{"error": CODE, "message": what happened and what to do}``. Does not know routes.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from litereplica.config.units import parse_duration
from litereplica.errors import Corrupt, LitereplicaError, Misconfigured, Refused, Unavailable

log = structlog.get_logger()

# The most special first: Misconfigured is a Refused.
OUTCOMES: Final[tuple[tuple[type[LitereplicaError], HTTPStatus, str], ...]] = (
    (Misconfigured, HTTPStatus.BAD_REQUEST, "bad_request"),
    (Refused, HTTPStatus.CONFLICT, "refused"),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    (Corrupt, HTTPStatus.SERVICE_UNAVAILABLE, "corrupt"),
)


class Problem(HTTPException):
    """An answer that is not 200."""

    def __init__(self, status: HTTPStatus, code: str, message: str, extra: Mapping[str, object] | None = None) -> None:
        super().__init__(status.value, message)
        self.code = code
        self.extra = dict(extra or {})


def bad_request(message: str) -> Problem:
    """The client has to ask differently."""
    return Problem(HTTPStatus.BAD_REQUEST, "bad_request", message)


def duration(text: str, name: str) -> float:
    """Seconds of a parameter. Raises Problem."""
    try:
        return float(parse_duration(text))
    except (Misconfigured, ValueError):
        raise bad_request(f"give {name}= as a duration such as 500ms or 10s, not {text!r}") from None


async def explain(_: Request, error: Exception) -> Response:
    """Answer a Problem, or what the router says itself (no such path, no such method)."""
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, Problem) else HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    extra = error.extra if isinstance(error, Problem) else {}
    return JSONResponse({"error": code, "message": error.detail, **extra}, error.status_code, error.headers)


async def translate(_: Request, error: Exception) -> Response:
    """Answer one of our errors."""
    assert isinstance(error, LitereplicaError)
    status, code = next((status, code) for kind, status, code in OUTCOMES if isinstance(error, kind))
    return JSONResponse({"error": code, "message": error.message}, status)


async def disk_failed(request: Request, error: Exception) -> Response:
    """Answer what the disk of this node refused: its log is read for a checksum of an earlier TXID."""
    assert isinstance(error, OSError)
    reason = error.strerror or str(error)
    log.warning("log_unreadable", request=f"{request.method} {request.url.path}", reason=reason, then="nothing changes")
    message = f"this node cannot read its data directory ({reason}): ask again, or another node, and check the disk"
    return JSONResponse({"error": "unavailable", "message": message}, HTTPStatus.SERVICE_UNAVAILABLE)


async def failed(_: Request, error: Exception) -> Response:
    """Answer a bug. It is raised again behind this, and logged by the connection, as one in a begun answer is."""
    return JSONResponse(
        {"error": "internal", "message": f"{type(error).__name__}: see the node's log"},
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
