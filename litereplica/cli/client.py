"""One request to a node's HTTP interface, and the one place where its answers become our errors.

Knows status codes and what a person does about no answer. Does not know the commands.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import httpx

from litereplica.errors import Misconfigured, Refused, Unavailable

# A node on the same network answers in milliseconds; one that takes seconds is as good as gone for a person.
CONNECT_TIMEOUT_S: Final = 5.0
ANSWER_TIMEOUT_S: Final = 10.0


class TimeUp(Unavailable):
    """The node answers that what was waited for has not come in the time it gives to one question."""


def get(
    url: str, path: str, parameters: Mapping[str, str] | None = None, *, answer_timeout_s: float = ANSWER_TIMEOUT_S
) -> dict[str, Any]:
    """GET a JSON object from a node.

    Raises Unavailable (no answer, 503, 504 as TimeUp, or an answer that is not a node's), Refused (404, 409),
    Misconfigured (400, or a URL that is none).
    """
    with _client(url, answer_timeout_s) as client:
        answer = client.get(url + path, params=parameters)
    return _document(url, answer)


def post(url: str, path: str, body: Mapping[str, Any], *, answer_timeout_s: float) -> dict[str, Any]:
    """POST a JSON object to a node. Raises as ``get`` does; after no answer the outcome is unknown."""
    with _client(url, answer_timeout_s) as client:
        answer = client.post(url + path, json=body)
    return _document(url, answer)


def lines(url: str, path: str, parameters: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """GET JSON objects, one a line, as they come. Raises as ``get`` does, also between two of them."""
    with _client(url, ANSWER_TIMEOUT_S) as client, client.stream("GET", url + path, params=parameters) as answer:
        if not answer.is_success:
            answer.read()
            _document(url, answer)
            raise Unavailable(f"{url} answered {answer.status_code} and not as a node does; check the address")
        for line in answer.iter_lines():
            try:
                document = json.loads(line)
            except ValueError:
                document = None
            if not isinstance(document, dict):
                raise Unavailable(
                    f"{url} answers, and not as a node does; check the address, or name another with --url"
                )
            yield document


@contextlib.contextmanager
def _client(url: str, answer_timeout_s: float) -> Iterator[httpx.Client]:
    """A client of one request, whose failures are ours."""
    timeout = httpx.Timeout(answer_timeout_s, connect=CONNECT_TIMEOUT_S)
    try:
        # trust_env is off: a proxy for the way out must not stand between two nodes of one network. The system's
        # certificates are only read where one is verified.
        with httpx.Client(timeout=timeout, trust_env=False, verify=not url.startswith("http:")) as client:
            yield client
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, UnicodeError) as error:
        raise Misconfigured(
            f"{url!r} is not the URL of a node ({error}); write it like http://10.0.0.1:20202"
        ) from error
    except httpx.TimeoutException as error:
        raise Unavailable(f"no answer from {url} in time; ask again, or look at that node's log") from error
    except httpx.HTTPError as error:
        raise Unavailable(
            f"no answer from {url} ({str(error) or type(error).__name__}); "
            f"start the node with 'litereplica run', or name another one with --url"
        ) from error


def _document(url: str, answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict) or (answer.is_error and "message" not in document):
        raise Unavailable(
            f"{url} answered {answer.status_code} and not as a node does; check the address, or name another with --url"
        )
    if answer.is_success:
        return document
    message = str(document["message"])
    if answer.status_code == httpx.codes.BAD_REQUEST:
        raise Misconfigured(message)
    if answer.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
        raise Refused(message)
    if document.get("error") == "timeout":
        raise TimeUp(message)
    raise Unavailable(message)
