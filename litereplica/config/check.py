"""Which settings fit together.

Knows the rules between keys, each of which a person has broken somewhere. Pure: looks at values only.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from litereplica.config.check_consul import check_consul
from litereplica.config.check_proxy import check_proxy
from litereplica.config.settings import Settings, WritesSettings
from litereplica.config.units import Address, HttpUrl, format_duration

Complaint = tuple[tuple[str, ...], str]

# It is one line of `.primary`, a word in log lines and a field in records.
_NAME: Final = re.compile(r"[^\s/\x00-\x1f\x7f]{1,255}")

_UNREACHABLE: Final = "must be a URL that others can reach, such as http://10.0.0.1:20202"

# One heartbeat may be lost and one be late, and the connection still lives.
HEARTBEATS_IN_TIMEOUT: Final = 3
# Slower than this a pass over a database of 1 GB takes more than four hours, and one of 100 GB never ends.
SLOWEST_SCRUB_BYTES_S: Final = 64 * 1024
# A primary that hands its role over, or is followed by another, takes some seconds to be found again.
SHORTEST_WRITE_S: Final = 1.0
# Longer than any failover; whoever waits longer is better told that nobody knows.
LONGEST_WRITE_S: Final = 300.0
# A small database would be read all the time.
SHORTEST_SCRUB_PAUSE_S: Final = 0.1


def check_settings(settings: Settings) -> Iterator[Complaint]:
    """Yield the key at fault and the complaint, for everything that does not fit."""
    yield from _check_names(settings)
    yield from _check_directories(settings.mount.dir, settings.data.dir)
    yield from _check_ports(settings)
    yield from _check_limits(settings)
    yield from _check_lease(settings)
    yield from _check_writes(settings.writes)
    if settings.lease.type == "consul":
        yield from check_consul(settings)
    if settings.proxy.listen is not None:
        yield from check_proxy(settings)


def _check_names(settings: Settings) -> Iterator[Complaint]:
    if not _NAME.fullmatch(settings.node.name):
        yield ("node", "name"), f"'node.name' must be one word of at most 255 characters, found {settings.node.name!r}"


def _check_directories(mount: Path, data: Path) -> Iterator[Complaint]:
    for key, directory in (("mount", mount), ("data", data)):
        if not directory.is_absolute():
            yield (key, "dir"), f"'{key}.dir' must be an absolute path, found '{directory}'"
        elif directory == Path("/"):
            yield (key, "dir"), f"'{key}.dir' must be a directory of its own, found '/'"
    if mount == data:
        yield ("mount", "dir"), f"'mount.dir' and 'data.dir' must differ, both are '{data}'"
    elif mount.is_relative_to(data) or data.is_relative_to(mount):
        yield (
            ("mount", "dir"),
            f"'mount.dir' ('{mount}') and 'data.dir' ('{data}') must be apart: the one must not lie inside the other",
        )


def _check_ports(settings: Settings) -> Iterator[Complaint]:
    http, replication = settings.http.listen, settings.replication.listen
    same_host = http.host == replication.host or http.is_any or replication.is_any
    if http.port and http.port == replication.port and same_host:
        yield (
            ("replication", "listen"),
            f"'http.listen' and 'replication.listen' must have different ports, both have {http.port}",
        )
    for key, address in (("http.listen", http), ("replication.listen", replication)):
        if address.host == "*":
            yield tuple(key.split(".")), f"'{key}': write 0.0.0.0:{address.port} to listen on every address"
    advertise = settings.replication.advertise
    if advertise is not None and (advertise.port == 0 or advertise.is_any):
        yield (
            ("replication", "advertise"),
            f"'replication.advertise' must be an address that others can connect to, found {advertise}",
        )
    for key, url in (("http.advertise", settings.http.advertise), ("proxy.advertise", settings.proxy.advertise)):
        if url is not None and _is_any(url):
            yield tuple(key.split(".")), f"'{key}' {_UNREACHABLE}, found {url}"


def _is_any(url: HttpUrl) -> bool:
    """Whether the URL's host is every address of whoever asks, and so no place."""
    return Address(urlsplit(url).hostname or "", 0).is_any


def _check_limits(settings: Settings) -> Iterator[Complaint]:
    replication = settings.replication
    if replication.heartbeat_s <= 0:
        yield ("replication", "heartbeat"), "'replication.heartbeat' must be more than 0"
    elif replication.timeout_s < HEARTBEATS_IN_TIMEOUT * replication.heartbeat_s:
        message = (
            f"'replication.timeout' must be at least {HEARTBEATS_IN_TIMEOUT} times 'replication.heartbeat', "
            f"so that one late message does not end a connection"
        )
        yield ("replication", "timeout"), message
    if settings.data.retention.size_bytes <= 0:
        yield ("data", "retention", "size"), "'data.retention.size' must be more than 0"
    scrub = settings.data.scrub
    if 0 < scrub.rate_bytes < SLOWEST_SCRUB_BYTES_S:
        yield (
            ("data", "scrub", "rate"),
            "'data.scrub.rate' must be at least 64KiB (it is bytes a second), or 0 to read nothing again",
        )
    if scrub.pause_s < SHORTEST_SCRUB_PAUSE_S:
        yield ("data", "scrub", "pause"), "'data.scrub.pause' must be at least 100ms; 0 for the rate turns it off"


def _check_writes(writes: WritesSettings) -> Iterator[Complaint]:
    timeout = format_duration(writes.timeout_s)
    if not SHORTEST_WRITE_S <= writes.timeout_s <= LONGEST_WRITE_S:
        message = (
            f"must be {format_duration(SHORTEST_WRITE_S)} to {format_duration(LONGEST_WRITE_S)}, found {timeout}: for "
            f"so long an application is held in COMMIT when the primary does not answer"
        )
        yield ("writes", "timeout"), f"'writes.timeout' {message}"
    elif writes.conflict_lease_s > writes.timeout_s / 2:
        message = (
            f"must be at most half of 'writes.timeout' ({timeout}), because transactions of other nodes wait for its "
            f"end; 0 gives no leases"
        )
        yield ("writes", "conflict_lease"), f"'writes.conflict_lease' {message}"


def _check_lease(settings: Settings) -> Iterator[Complaint]:
    if settings.lease.type != "static":
        return
    primary = settings.lease.static.primary
    if primary is None:
        yield (
            ("lease", "type"),
            "'lease.type' static needs 'lease.static.primary' with the keys name, http and replication",
        )
        return
    key = ("lease", "static", "primary")
    if not _NAME.fullmatch(primary.name):
        yield (*key, "name"), f"'lease.static.primary.name' must be one word, found {primary.name!r}"
    if _is_any(primary.http):
        yield (*key, "http"), f"'lease.static.primary.http' {_UNREACHABLE}, found {primary.http}"
    if primary.replication.port == 0 or primary.replication.is_any:
        message = f"must be an address that replicas can connect to, found {primary.replication}"
        yield (*key, "replication"), f"'lease.static.primary.replication' {message}"
    elif primary.name == settings.node.name:
        yield from _check_reachable(settings.replication.listen, primary.replication)


def _check_reachable(listen: Address, published: Address) -> Iterator[Complaint]:
    """Check that the primary can be reached where the configuration sends the replicas."""
    if listen.is_loopback and not published.is_loopback:
        message = (
            f"'replication.listen' is {listen}, which only this machine can reach, but this node is the primary "
            f"and replicas connect to {published}: listen on 0.0.0.0:{published.port}"
        )
        yield ("replication", "listen"), message
    elif listen.port == 0:
        yield ("replication", "listen"), "'replication.listen' needs a port of its own on the primary, found 0"
