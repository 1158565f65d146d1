"""Which settings fit together."""

from pathlib import Path

import pytest

from litereplica.config import WrongSettings, load_settings

PRIMARY = "static: {primary: {name: a, http: 'http://10.0.0.1:20202', replication: '10.0.0.1:20203'}}"

AT = "http: {listen: '10.0.0.1:20202'}\nreplication: {listen: '10.0.0.1:20203'}\n"
LOCAL = "http: {advertise: 'http://127.0.0.1:20202'}\nreplication: {advertise: '127.0.0.1:20203'}\n"

LOCAL_PRIMARY = PRIMARY.replace("10.0.0.1", "127.0.0.1")


def complaints(tmp_path: Path, text: str) -> list[str]:
    file = tmp_path / "f.yml"
    file.write_text(text, encoding="utf-8")
    try:
        load_settings(file, {})
    except WrongSettings as error:
        return [str(problem).removeprefix(f"{file}:") for problem in error.problems]
    return []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mount: {dir: here}", "1: 'mount.dir' must be an absolute path, found 'here'"),
        ("data: {dir: ~/data}", "1: 'data.dir' must be an absolute path, found '~/data'"),
        ("mount:\n  dir: /a\ndata: {dir: /a}", "2: 'mount.dir' and 'data.dir' must differ, both are '/a'"),
        ("mount: {dir: /a/../b}\ndata: {dir: /b/}", "1: 'mount.dir' and 'data.dir' must differ, both are '/b'"),
        ("mount: {dir: /a/b}\ndata: {dir: /a}", "1: 'mount.dir' ('/a/b') and 'data.dir' ('/a') must be apart"),
        ("mount: {dir: /a}\ndata: {dir: /a/b}", "1: 'mount.dir' ('/a') and 'data.dir' ('/a/b') must be apart"),
        ("http: {listen: 'h:1'}\nreplication: {listen: 'h:1'}", "2: 'http.listen' and 'replication.listen' must have"),
        ("http: {listen: 'h:1'}\nreplication: {listen: '0.0.0.0:1'}", "2: 'http.listen' and 'replication.listen' must"),
        ("http: {listen: '*:1'}", "1: 'http.listen': write 0.0.0.0:1 to listen on every address"),
        ("replication: {advertise: '0.0.0.0:1'}", "1: 'replication.advertise' must be an address that others"),
        ("replication: {advertise: '0:1'}", "1: 'replication.advertise' must be an address that others"),
        ("replication: {advertise: '[::0]:1'}", "1: 'replication.advertise' must be an address that others"),
        ("http: {advertise: 'http://0.0.0.0:20202'}", "1: 'http.advertise' must be a URL that others can reach"),
        ("http: {advertise: 'http://[::]'}", "1: 'http.advertise' must be a URL that others can reach"),
        ("http: {advertise: 'https://0'}", "1: 'http.advertise' must be a URL that others can reach"),
        ("proxy: {advertise: 'http://0.0.0.0'}", "1: 'proxy.advertise' must be a URL that others can reach"),
        (
            "lease: {type: static, static: {primary: {name: a, http: 'http://0.0.0.0', replication: 'h:1'}}}",
            "1: 'lease.static.primary.http' must be a URL that others can reach",
        ),
        ("http: {listen: 'h:1'}\nreplication: {listen: '0:1'}", "2: 'http.listen' and 'replication.listen' must have"),
        (
            "http: {listen: '0:20202'}\nreplication: {advertise: 'h:1', listen: '0:1'}\nlease: {type: consul}",
            "1: 'http.listen' is 0:20202, and other nodes need an address",
        ),
        ("replication: {advertise: 'h:0'}", "1: 'replication.advertise' must be an address that others"),
        ("replication:\n  heartbeat: 3s", "1: 'replication.timeout' must be at least 3 times 'replication.heartbeat'"),
        ("replication:\n  timeout: 2s", "2: 'replication.timeout' must be at least 3 times 'replication.heartbeat'"),
        ("replication: {heartbeat: 0}", "1: 'replication.heartbeat' must be more than 0"),
        ("data: {retention: {size: 0}}", "1: 'data.retention.size' must be more than 0"),
        ("data: {scrub: {rate: 1KiB}}", "1: 'data.scrub.rate' must be at least 64KiB"),
        ("data: {scrub: {pause: 0}}", "1: 'data.scrub.pause' must be at least 100ms"),
        (
            "writes: {timeout: 500ms}",
            "1: 'writes.timeout' must be 1s to 5m, found 500ms: for so long an application is",
        ),
        ("writes: {timeout: 6m}", "1: 'writes.timeout' must be 1s to 5m, found 6m"),
        ("writes:\n  conflict_lease: 6s", "2: 'writes.conflict_lease' must be at most half of 'writes.timeout' (10s)"),
        ("node: {name: two words}", "1: 'node.name' must be one word of at most 255 characters"),
        ("node: {name: a/b}", "1: 'node.name' must be one word of at most 255 characters"),
        ("lease:\n  type: static", "2: 'lease.type' static needs 'lease.static.primary' with the keys name, http and"),
        ("lease:\n  type: static\n  static: {primary: }", "2: 'lease.type' static needs 'lease.static.primary'"),
        (
            "lease: {type: static, static: {primary: {name: a b, http: 'http://h', replication: 'h:1'}}}",
            "1: 'lease.static.primary.name' must be one word",
        ),
        (
            "lease: {type: static, static: {primary: {name: a, http: 'http://h', replication: 'h:0'}}}",
            "1: 'lease.static.primary.replication' must be an address that replicas can connect to",
        ),
        (
            f"node: {{name: a}}\nlease: {{type: static, {PRIMARY}}}\nreplication: {{listen: '127.0.0.1:20203'}}",
            "3: 'replication.listen' is 127.0.0.1:20203, which only this machine can reach",
        ),
        (
            f"node: {{name: a}}\nlease: {{type: static, {PRIMARY}}}\nreplication: {{listen: '0.0.0.0:0'}}",
            "3: 'replication.listen' needs a port of its own on the primary, found 0",
        ),
        (
            "http: {advertise: 'http://h'}\nreplication: {timeout: 6s}\nlease: {type: consul}",
            "2: 'replication.listen' is 127.0.0.1:20203, and other nodes need an address: set 'replication.advertise'",
        ),
        (
            "replication: {listen: '0.0.0.0:20203', advertise: 'h:20203'}\nhttp: {}\nlease: {type: consul}",
            "2: 'http.listen' is 127.0.0.1:20202, and other nodes need an address: set 'http.advertise' to the URL",
        ),
        (
            "http: {advertise: 'http://h'}\nreplication: {advertise: 'h:1'}\nlease: {type: consul}",
            "2: 'replication.listen' is 127.0.0.1:20203, which only this machine can reach",
        ),
        (
            AT + "lease: {type: consul, consul: {ttl: 500ms}}",
            (
                "3: 'lease.consul.ttl' must be at least 1s, found 500ms: it is renewed every third of it, and a "
                "renewal that takes longer than that (0.17s) has failed"
            ),
        ),
        (
            AT + "lease: {type: consul, consul: {ttl: 1h}}",
            "3: 'lease.consul.ttl' must be at most 5m, found 1h",
        ),
        (
            AT + "lease: {type: consul, consul: {ttl: 4s, outage: continue}}",
            (
                "2: 'lease.consul.outage' continue needs the other nodes' word before the lease is over, but a "
                "replication connection that broke silently is noticed after 'replication.timeout' (6s), and the lease "
                "lasts 'lease.consul.ttl' less its margin (4s - 0.4s = 3.6s): set replication.timeout to at most 3.6s "
                "(and replication.heartbeat to a third of it), or lease.consul.ttl to at least 6.7s"
            ),
        ),
        (AT + "lease: {type: consul, consul: {urls: []}}", "3: 'lease.consul.urls' needs at least one agent"),
        (AT + "lease: {type: consul, consul: {key: /a}}", "3: 'lease.consul.key' must be words of letters, digits"),
        (
            AT + "lease: {type: consul, consul: {urls: ['https://h'], tls: {cert: /c}}}",
            "3: 'lease.consul.tls.key' is missing: a certificate and its key go together",
        ),
        (
            AT + "lease: {type: consul, consul: {tls: {ca: /c}}}",
            "3: 'lease.consul.tls' is set, but no URL in 'lease.consul.urls' begins with https://",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path, text: str, complaint: str) -> None:
    (found,) = complaints(tmp_path, text)
    assert found.removeprefix(str(tmp_path / "f.yml")).startswith(complaint)


@pytest.mark.parametrize(
    "text",
    [
        "mount: {dir: /a}\ndata: {dir: /ab}",
        "http: {listen: '10.0.0.1:1'}\nreplication: {listen: '127.0.0.1:1'}",
        "http: {listen: 'h:0'}\nreplication: {listen: 'h:0'}",
        "replication: {heartbeat: 1s, timeout: 3s}",
        "data: {scrub: {rate: 0}}",
        "data: {scrub: {rate: 64KiB, pause: 100ms}}",
        f"node: {{name: b}}\nlease: {{type: static, {PRIMARY}}}\nreplication: {{listen: '127.0.0.1:20203'}}",
        f"node: {{name: a}}\nlease: {{type: static, {PRIMARY}}}\nreplication: {{listen: '0.0.0.0:20203'}}",
        f"node: {{name: a}}\nlease: {{type: static, {PRIMARY}}}\nreplication: {{listen: '10.0.0.1:20203'}}",
        f"node: {{name: a}}\nlease: {{type: static, {LOCAL_PRIMARY}}}\nreplication: {{listen: '127.0.0.1:2'}}",
        f"lease: {{type: standalone, {PRIMARY}}}",
        AT + "lease: {type: consul}",
        LOCAL + "lease: {type: consul, consul: {ttl: 1s}}",
        AT + "lease: {type: consul, consul: {ttl: 7s, outage: continue}}",
        "lease: {consul: {ttl: 1ms}}",
        "writes: {conflict_lease: 5s, timeout: 10s}",
        "writes: {conflict_lease: 0, timeout: 1s}",
    ],
)
def test_settings_that_fit_are_accepted(tmp_path: Path, text: str) -> None:
    assert complaints(tmp_path, text) == []
