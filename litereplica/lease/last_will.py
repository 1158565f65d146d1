"""The child that outlives its daemon by a moment: when the pipe on its standard input breaks, it does what it was told.

Started by will.py as ``python -I -S last_will.py``; the standard library only, and of that next to nothing until the
moment comes. Reads lines of JSON, of which the newest counts: {urls, token, tls {ca, cert, key, verify}, session, steps
(a transaction), limit_s}, or "goodbye" before an ordinary end. Then: the transaction (its first step checks that the
session still has the lease), and the session. Knows nothing of the rest of the program.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing's own would have to be imported, and that takes more memory than all of this
if TYPE_CHECKING:
    import ssl
    from typing import Any

ATTEMPT_S = 1.0
"""For one request: an agent on the same network answers within some milliseconds, and there may be another one."""
LONGEST_S = 10.0
"""For everything. After a ttl others take the lease over by themselves, so it is also over when that has passed."""
PAUSE_S = 0.1
_LARGEST_READ_BYTES = 65536


def main() -> None:
    """Wait for the end of the daemon, whatever it is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    buffered, newest = b"", b""
    while True:
        data = os.read(0, _LARGEST_READ_BYTES)
        if not data:
            break
        *lines, buffered = (buffered + data).split(b"\n")
        newest = lines[-1] if lines else newest
    will = json.loads(newest) if newest else "goodbye"
    if isinstance(will, dict):
        carry_out(will)


def carry_out(will: dict[str, Any]) -> None:
    """Ask every agent in turn until one has done it, or the time is over."""
    end = time.monotonic() + min(will["limit_s"], LONGEST_S)
    requests = [("/v1/session/destroy/" + will["session"], b"")]
    if will["steps"]:
        requests.insert(0, ("/v1/txn", json.dumps(will["steps"]).encode()))
    while requests:
        for url in will["urls"]:
            if requests and time.monotonic() < end and _is_done(url, will, *requests[0], end):
                requests.pop(0)
        if time.monotonic() >= end:
            return
        if requests:
            time.sleep(PAUSE_S if len(will["urls"]) == 1 else PAUSE_S / 10)


def _is_done(url: str, will: dict[str, Any], path: str, body: bytes, end: float) -> bool:
    """Whether the agent answered that it did it, or (409) that it is no longer ours to do."""
    import http.client

    scheme, _, place = url.partition("://")
    timeout_s = max(0.05, min(ATTEMPT_S, end - time.monotonic()))
    try:
        connection = (
            http.client.HTTPSConnection(place, timeout=timeout_s, context=_context(will["tls"]))
            if scheme == "https"
            else http.client.HTTPConnection(place, timeout=timeout_s)
        )
        connection.request("PUT", path, body, {"X-Consul-Token": will["token"]} if will["token"] else {})
        answer = connection.getresponse()
        begins = answer.read(1)
        connection.close()
    except (OSError, http.client.HTTPException):
        return False
    # Something in front of an agent may answer in its place, but neither "true" nor with an object.
    return answer.status in {200, 409} and begins in {b"t", b"{"}


def _context(tls: dict[str, Any]) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context(cafile=tls["ca"])
    if tls["cert"]:
        context.load_cert_chain(tls["cert"], tls["key"])
    if not tls["verify"]:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


if __name__ == "__main__":
    main()
    sys.exit(0)
