"""Talking to Consul's agents: python-consul2 words requests and reads answers, httpx carries them on trio.

Knows several agents, which of them answers, how long a call may take, and what each failure means. Does not know what
is kept in Consul.
"""

import base64
import json
import math
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx
import trio
from consul import base

from litereplica.cluster.lease import RENEWALS_IN_TTL
from litereplica.errors import Misconfigured, Unavailable

LONGEST_CALL_S: Final = 5.0
"""With a long ttl: no healthy agent takes so long, and another one may be asked."""
ATTEMPT_SHARE: Final = 0.4
"""Part of what is left of a call's time that one of several agents may take: there is time to ask the next. Less than
the half after which a renewal is given up from outside (node/keeper_renewal.py): who is cancelled learns nothing of its
agent, and the next renewal would ask the same one."""
CONNECT_SHARE: Final = 0.25
"""Part of a call's time that one of several agents may take to accept a connection: then a write may be sent to the
next, within the same renewal."""
CONNECT_SHARE_OF_ONE: Final = 0.5
"""The same where there is no other."""
# Consul adds up to a sixteenth to a blocking query's wait, so that not all come back at once.
_JITTER: Final = 1 / 16
# Consul's own limit of a blocking query.
LONGEST_WAIT_S: Final = 600.0
# An answer is some kilobytes for each member or some hundred for the history; this is no answer of Consul's.
_LARGEST_ANSWER_BYTES: Final = 64 * 2**20

Answer = TypeVar("Answer")


class Denied(Unavailable):
    """Consul does not let us: the token, the certificate. It may let us again. The message says what to do."""


class NotDone(Exception):
    """A condition did not hold, and nothing happened; an outcome, not an error. ``reasons`` are Consul's words."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True, slots=True)
class Tls:
    """How agents are recognised (``ca``: the system's when None) and what we show them."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Raise Misconfigured when a file cannot be used."""
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            if self.cert is not None:
                context.load_cert_chain(self.cert, self.key)
        except OSError as error:  # ssl.SSLError is one
            files = ", ".join(str(each) for each in (self.ca, self.cert, self.key) if each is not None)
            raise Misconfigured(f"the TLS files for Consul cannot be used ({error}): check {files}") from error
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's state. ``index``: of its last change."""

    key: str
    value: bytes | None
    index: int
    session: str


def call_limit_s(ttl_s: float) -> float:
    """How long a call may take: until the next renewal is due."""
    return min(ttl_s / RENEWALS_IN_TTL, LONGEST_CALL_S)


_KV: Final = "/v1/kv/"
_TXN: Final = "/v1/txn"
_CREATE: Final = "/v1/session/create"
_RENEW: Final = "/v1/session/renew/"
_INDEX: Final = "X-Consul-Index"


def _check_answer(method: str, path: str, code: int, headers: Mapping[str, str], body: str) -> None:
    """Raise ValueError for what an agent does not answer, but what stands in front of one may: nginx, an ingress.

    Above all a 404 where there is nothing behind it must not be taken for a key, or a session, that is gone. What is an
    error by its code is left to python-consul2.
    """
    if code in {httpx.codes.OK, httpx.codes.CONFLICT}:
        is_consuls = _is_document(method, path, code, headers, json.loads(body))
    elif code == httpx.codes.NOT_FOUND and method == "GET" and path.startswith(_KV):
        is_consuls = headers.get(_INDEX, "").isdigit()
    elif code == httpx.codes.NOT_FOUND:
        # It names the session.
        is_consuls = path.startswith(_RENEW) and path.removeprefix(_RENEW) in body
    else:
        is_consuls = code >= httpx.codes.BAD_REQUEST
    if not is_consuls:
        raise ValueError(f"{code} to {method} {path}: {body.strip()[:80]}")


def _is_document(method: str, path: str, code: int, headers: Mapping[str, str], document: Any) -> bool:
    """Whether it has the form of Consul's answer, so far as it is read."""
    if code == httpx.codes.CONFLICT:
        errors = (_listed(document, "Errors") if path == _TXN else None) or []
        return bool(errors) and all(isinstance(each, dict) and "What" in each for each in errors)
    if method == "GET":  # of keys, of which there is one at least
        return isinstance(document, list) and bool(document) and headers.get(_INDEX, "").isdigit()
    if path == _TXN:
        results = _listed(document, "Results")
        return results is not None and all(isinstance(each, dict) and "KV" in each for each in results)
    if path == _CREATE:
        return isinstance(document, dict) and isinstance(document.get("ID"), str) and bool(document["ID"])
    if path.startswith(_RENEW):
        return isinstance(document, list) and bool(document) and all(isinstance(each, dict) for each in document)
    return isinstance(document, bool)


def _listed(document: Any, name: str) -> list[Any] | None:
    """What an object has under a name; null is an empty list, None: it has no list there."""
    if not isinstance(document, dict) or name not in document:
        return None
    found = document[name]
    return [] if found is None else found if isinstance(found, list) else None


class _Carrier(base.HTTPClient):  # type: ignore[misc]
    """python-consul2's port to the network, for one agent."""

    def __init__(self, url: str, client: httpx.AsyncClient) -> None:
        parts = urlsplit(url)
        super().__init__(parts.hostname, parts.port, parts.scheme)
        self.base_uri = url
        self._client = client

    async def _ask(
        self,
        callback: Callable[[Any], Any],
        method: str,
        path: str,
        params: Sequence[tuple[str, Any]] | None,
        headers: Mapping[str, str] | None,
        data: Any = None,
    ) -> Any:
        async with self._client.stream(method, self.uri(path, params), headers=headers, content=data or b"") as found:
            content = b""
            async for piece in found.aiter_bytes():
                content += piece
                if len(content) > _LARGEST_ANSWER_BYTES:
                    raise httpx.DecodingError("an answer of more than 64 MiB")
        body = content.decode("utf-8", "replace")
        _check_answer(method, path, found.status_code, found.headers, body)
        if path == _TXN and found.status_code == httpx.codes.CONFLICT:
            raise NotDone([str(each["What"]) for each in json.loads(body)["Errors"]])
        return callback(base.Response(found.status_code, found.headers, body, content))

    async def get(self, callback: Any, path: str, params: Any = None, headers: Any = None) -> Any:
        return await self._ask(callback, "GET", path, params, headers)

    async def put(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._ask(callback, "PUT", path, params, headers, data)

    async def delete(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._ask(callback, "DELETE", path, params, headers, data)

    async def post(self, callback: Any, path: str, params: Any = None, data: Any = "", headers: Any = None) -> Any:
        return await self._ask(callback, "POST", path, params, headers, data)


class Api:
    """One agent, as python-consul2 offers it.

    Not its Consul class: that lets CONSUL_HTTP_ADDR and other variables of the environment overrule what it is told.
    """

    def __init__(self, url: str, token: str, client: httpx.AsyncClient) -> None:
        self.http = _Carrier(url, client)
        self.token = token or None
        self.dc = None
        self.consistency = "consistent"  # never a follower's or an old leader's memory
        self.kv = base.Consul.KV(self)
        self.session = base.Consul.Session(self)
        self.txn = base.Consul.Txn(self)


class Agents:
    """All agents: one is asked for as long as it answers, then the next."""

    def __init__(self, urls: Sequence[str], token: str, tls: Tls, limit_s: float) -> None:
        assert urls
        self.urls = tuple(urls)
        self.limit_s = limit_s
        # Without https no certificates are read; proxies of the environment are for the Internet.
        secure = any(url.startswith("https:") for url in urls)
        context = tls.context() if secure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        connect_share = CONNECT_SHARE if len(urls) > 1 else CONNECT_SHARE_OF_ONE
        timeout = httpx.Timeout(LONGEST_WAIT_S * (1 + _JITTER) + limit_s, connect=limit_s * connect_share)
        self._client = httpx.AsyncClient(verify=context, trust_env=False, timeout=timeout)
        self._apis = [Api(url, token, self._client) for url in urls]
        self._current = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def read(self, request: Callable[[Api], Awaitable[Answer]], *, wait_s: float = 0.0) -> Answer:
        """Ask for something; any agent will do. ``wait_s``: what a blocking query was told. Raises Unavailable."""
        # What waits for a change is slow by design: only its connection, or all of its time, says whether an agent is
        # there.
        share = 1.0 if wait_s else ATTEMPT_SHARE
        return await self._ask(request, self.limit_s + wait_s * (1 + _JITTER), again=True, share=share)

    async def write(self, request: Callable[[Api], Awaitable[Answer]]) -> Answer:
        """Change something, at most once. Raises Unavailable (it may have happened), NotDone (it has not)."""
        return await self._ask(request, self.limit_s, again=False)

    async def _ask(
        self, request: Callable[[Api], Awaitable[Answer]], limit_s: float, *, again: bool, share: float = ATTEMPT_SHARE
    ) -> Answer:
        end = trio.current_time() + limit_s
        problem = Unavailable("Consul does not answer")
        for left in range(len(self._apis), 0, -1):
            left_s = end - trio.current_time()
            if left_s <= 0:
                break  # who is given no time cannot answer: going on through all would end at the one that hangs
            number = self._current
            # The last one may use all the time that is left for a read; a write has a renewal's limit at every agent.
            takes_all = left == 1 and (again or len(self._apis) == 1)
            try:
                with trio.fail_at(end if takes_all else end - left_s * (1.0 - share)):
                    return await request(self._apis[number])
            except base.NotFound as error:
                raise NotDone([str(error)]) from error
            except (base.ConsulException, httpx.HTTPError, trio.TooSlowError, ValueError, KeyError) as error:
                problem = _meaning(self.urls[number], error)
                if isinstance(problem, Denied):
                    raise problem from error
                if self._current == number:  # not when another call has gone on already
                    self._current = (number + 1) % len(self._apis)
                never_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
                if not (again or never_sent):
                    break
        raise problem


_TLS_TROUBLE: Final = (
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is not trusted: set lease.consul.tls.ca to its authority"),
    ("CERTIFICATE_REQUIRED", "it wants a certificate of ours: set lease.consul.tls.cert and lease.consul.tls.key"),
    ("BAD_CERTIFICATE", "it wants a certificate of ours: set lease.consul.tls.cert and lease.consul.tls.key"),
    ("WRONG_VERSION_NUMBER", "it does not speak TLS: write http:// in lease.consul.urls"),
    ("RECORD_LAYER_FAILURE", "it does not speak TLS: write http:// in lease.consul.urls"),
)


def _meaning(url: str, error: Exception) -> Unavailable:
    """Say in our words what went wrong with one agent, and what to do."""
    text = str(error).strip()[:200]
    if isinstance(error, base.ACLPermissionDenied | base.ACLDisabled):
        return Denied(
            f"Consul at {url} says '{text or 'Permission denied'}': give the token in lease.consul.token the rights "
            f'key_prefix "litereplica/" write and session_prefix "" write'
        )
    if isinstance(error, base.BadRequest) and "HTTPS" in text:
        return Denied(f"Consul at {url} wants TLS: write https:// in lease.consul.urls")
    if isinstance(error, base.ConsulException):
        return Unavailable(f"Consul at {url} says '{text}'")
    if isinstance(error, trio.TooSlowError):
        return Unavailable(f"Consul at {url} does not answer in time")
    if isinstance(error, httpx.HTTPError):
        return _network_meaning(url, _root(error)[:200])
    return Unavailable(f"what answers at {url} is not Consul ({error!r}): correct lease.consul.urls")


def _root(error: BaseException) -> str:
    """What lies beneath: httpx, httpcore and trio each wrap what the one below said, and not all repeat it."""
    said = type(error).__name__
    link: BaseException | None = error
    while link is not None:
        said = str(link).strip() or said
        link = link.__cause__ or link.__context__
    return said


def _network_meaning(url: str, text: str) -> Unavailable:
    shown = text.upper().replace(" ", "_")
    for sign, advice in _TLS_TROUBLE:
        if sign in shown:
            return Denied(f"no TLS connection to Consul at {url}, {advice} ({text})")
    return Unavailable(f"Consul at {url} cannot be reached ({text})")


# ---------------------------------------------------------------------------------------------------------------- keys
async def get(agents: Agents, key: str) -> Entry | None:
    """Read a key as it is now."""
    _, found = await agents.read(lambda api: api.kv.get(key))
    return None if found is None else _entry(found)


async def get_changed(agents: Agents, key: str, index: int, wait_s: float) -> tuple[int, Entry | None]:
    """Read a key as soon as Consul's index of it is above ``index`` (0: at once), at the latest after ``wait_s``.

    (index for the next call, the key's state). It may come back without a change, and the index may have fallen.
    """
    wait_s = min(wait_s, LONGEST_WAIT_S)
    wait_ms = max(1, math.ceil(wait_s * 1000))
    number, found = await agents.read(
        lambda api: api.kv.get(key, index=index or None, wait=f"{wait_ms}ms"), wait_s=wait_s if index else 0.0
    )
    return max(1, int(number or 0)), None if found is None else _entry(found)


async def get_below(agents: Agents, prefix: str) -> list[Entry]:
    """Read every key that begins with ``prefix``."""
    _, found = await agents.read(lambda api: api.kv.get(prefix, recurse=True))
    return [_entry(each) for each in found or ()]


async def keys_below(agents: Agents, prefix: str) -> list[str]:
    """Return the names of the keys that begin with ``prefix``."""
    _, found = await agents.read(lambda api: api.kv.get(prefix, keys=True))
    return sorted(found or ())


async def delete(agents: Agents, key: str) -> None:
    """Delete a key; once more than once is the same."""
    await agents.write(lambda api: api.kv.delete(key))


def operation(verb: str, key: str, value: bytes | None = None, *, index: int = 0, session: str = "") -> dict[str, Any]:
    """Return one step of a transaction."""
    step: dict[str, Any] = {"Verb": verb, "Key": key}
    if value is not None:
        step["Value"] = base64.b64encode(value).decode()
    if index:
        step["Index"] = index
    if session:
        step["Session"] = session
    return {"KV": step}


async def transact(agents: Agents, *steps: dict[str, Any]) -> dict[str, Entry]:
    """All steps or none. The state of each key that the last step on it returned. Raises NotDone, Unavailable."""
    try:
        return await agents.write(lambda api: _put_all(api, steps))
    except NotDone as refused:
        if any("ermission denied" in reason for reason in refused.reasons):
            raise _meaning(agents.urls[0], base.ACLPermissionDenied(refused.reasons[0])) from refused
        raise


async def _put_all(api: Api, steps: Sequence[dict[str, Any]]) -> dict[str, Entry]:
    answer = await api.txn.put(list(steps))
    found = [_entry(each["KV"]) for each in answer["Results"] or ()]
    return {each.key: each for each in found}


def _entry(found: Mapping[str, Any]) -> Entry:
    value = found.get("Value")
    if isinstance(value, str):  # a transaction's answer, which python-consul2 does not decode
        value = base64.b64decode(value)
    return Entry(str(found["Key"]), value, int(found["ModifyIndex"]), str(found.get("Session") or ""))
