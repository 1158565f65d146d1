"""Whether the settings of a lease in Consul fit together.

Knows what other nodes must reach, and the arithmetic of the times. Pure: looks at values only.
"""

import re
from collections.abc import Iterator
from typing import Final

from litereplica.cluster.lease import LONGEST_TTL_S, RENEWALS_IN_TTL, SHORTEST_TTL_S, Timing
from litereplica.config.settings import Settings
from litereplica.config.units import format_duration

Complaint = tuple[tuple[str, ...], str]

# Consul takes almost anything; these show the same in its own tools, in URLs and in the rules of a token.
_KEY: Final = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
LONGEST_KEY: Final = 200


def check_consul(settings: Settings) -> Iterator[Complaint]:
    """Yield the key at fault and the complaint, for everything that does not fit."""
    yield from _check_agents(settings)
    yield from _check_times(settings)
    yield from _check_places(settings)


def _check_agents(settings: Settings) -> Iterator[Complaint]:
    consul = settings.lease.consul
    here = ("lease", "consul")
    if not consul.urls:
        yield (*here, "urls"), "'lease.consul.urls' needs at least one agent, such as http://127.0.0.1:8500"
    if not _KEY.fullmatch(consul.key) or len(consul.key) > LONGEST_KEY:
        message = (
            "must be words of letters, digits, '-', '_' and '.' with '/' between them, such as litereplica/primary"
        )
        yield (*here, "key"), f"'lease.consul.key' {message}, found {consul.key!r}"
    tls = consul.tls
    if (tls.cert is None) != (tls.key is None):
        missing = "cert" if tls.cert is None else "key"
        yield (*here, "tls", missing), f"'lease.consul.tls.{missing}' is missing: a certificate and its key go together"
    if tls.ca is not None and not any(url.startswith("https:") for url in consul.urls):
        yield (*here, "urls"), "'lease.consul.tls' is set, but no URL in 'lease.consul.urls' begins with https://"


def _check_times(settings: Settings) -> Iterator[Complaint]:
    consul, timeout_s = settings.lease.consul, settings.replication.timeout_s
    here = ("lease", "consul", "ttl")
    ttl = format_duration(consul.ttl_s)
    if consul.ttl_s < SHORTEST_TTL_S:
        message = (
            f"'lease.consul.ttl' must be at least {format_duration(SHORTEST_TTL_S)}, found {ttl}: it is renewed every "
            f"third of it, and a renewal that takes longer than that ({consul.ttl_s / RENEWALS_IN_TTL:.2f}s) has failed"
        )
        yield here, message
        return
    if consul.ttl_s > LONGEST_TTL_S:
        yield here, f"'lease.consul.ttl' must be at most {format_duration(LONGEST_TTL_S)}, found {ttl}"
        return
    margin_s = Timing(consul.ttl_s).margin_s
    usable_s = consul.ttl_s - margin_s
    if consul.outage == "continue" and timeout_s > usable_s:
        message = (
            f"'lease.consul.outage' continue needs the other nodes' word before the lease is over, but a replication "
            f"connection that broke silently is noticed after 'replication.timeout' ({format_duration(timeout_s)}), "
            f"and the lease lasts 'lease.consul.ttl' less its margin ({ttl} - {margin_s:g}s = {usable_s:g}s): set "
            f"replication.timeout to at most {usable_s:g}s (and replication.heartbeat to a third of it), or "
            f"lease.consul.ttl to at least {timeout_s * consul.ttl_s / usable_s:.1f}s"
        )
        yield ("replication", "timeout"), message


def _check_places(settings: Settings) -> Iterator[Complaint]:
    """Every node may be primary, so every node has to be reached by the others."""
    http, replication = settings.http, settings.replication
    if http.advertised is None:
        message = (
            f"'http.listen' is {http.listen}, and other nodes need an address: set 'http.advertise' to the URL by "
            f"which they reach this node, such as http://10.0.0.1:{http.listen.port or 20202}"
        )
        yield ("http", "listen"), message
    here = ("replication", "listen")
    if replication.advertised is None:
        message = (
            f"'replication.listen' is {replication.listen}, and other nodes need an address: set "
            f"'replication.advertise' to the one by which they reach this node, such as "
            f"10.0.0.1:{replication.listen.port or 20203}"
        )
        yield here, message
    elif replication.listen.is_loopback and not replication.advertised.is_loopback:
        message = (
            f"'replication.listen' is {replication.listen}, which only this machine can reach, but other nodes are "
            f"sent to {replication.advertised}: listen on 0.0.0.0:{replication.advertised.port}"
        )
        yield here, message
