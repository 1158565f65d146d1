"""Durations, sizes, addresses and URLs as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from litereplica.config.units import (
    Address,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
    parse_url,
    without_password,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("7d", 604800.0),
        ("1.5s", 1.5),
        ("0", 0.0),
        ("0s", 0.0),
        ("0.5ms", 0.0005),
    ],
)
def test_a_duration_is_read_in_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "s", "-1s", "1 s", "1S", "1m30s", "1e3s", ".5s", "1us", "nan", "inf", "٣s", "99999999d", "1s\n"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(600.0, "10m"), (0.5, "500ms"), (5.0, "5s"), (3600.0, "1h"), (86400.0, "1d"), (90.0, "90s"), (0.0, "0")],
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(min_value=0, max_value=10**12).map(lambda microseconds: microseconds / 10**6))
def test_a_duration_is_read_back_as_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("64MiB", 64 * 2**20),
        ("1GiB", 2**30),
        ("10MB", 10**7),
        ("1.5KiB", 1536),
        ("1 GiB", 2**30),
        ("1gib", 2**30),
        ("7B", 7),
        ("2TiB", 2**41),
        ("0", 0),
    ],
)
def test_a_size_is_read_in_bytes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5", "1M", "1GiBs", "1  GiB", "1e6", "9999999TiB", "0x10", "1\n"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**49))
def test_a_size_is_read_back_as_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:20202", Address("127.0.0.1", 20202)),
        ("db.example:1", Address("db.example", 1)),
        ("[::1]:80", Address("::1", 80)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:80",
        "[]:80",
        "[host]:80",
        "a b:1",
        "http://h:1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_address(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("10.0.0.1", False), ("db", False)],
)
def test_an_address_knows_whether_only_this_machine_reaches_it(host: str, loopback: bool) -> None:
    assert Address(host, 1).is_loopback is loopback


@pytest.mark.parametrize("text", ["http://10.0.0.1:20202", "https://db.example", "http://[::1]:80", "http://u:p@h:1"])
def test_a_url_is_kept_as_it_is(text: str) -> None:
    assert parse_url(text) == text
    assert parse_url(text + "/") == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.0.0.1:20202",
        "ftp://h",
        "http://",
        "http://h:0",
        "http://h:99999",
        "http://h/x",
        "http://h?a",
        "http://a b",
    ],
)
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        parse_url(text)


def test_a_refused_url_does_not_show_its_password() -> None:
    with pytest.raises(ValueError, match="expected a URL") as caught:
        parse_url("http://me:secret@h/path")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:secret@h:1", "http://me:***@h:1"),
        ("http://me@h:1", "http://me@h:1"),
        ("http://h:1", "http://h:1"),
        ("plain text", "plain text"),
    ],
)
def test_passwords_in_urls_are_hidden(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "0.0", "0x0", "::0", "0:0:0:0:0:0:0:0", "::ffff:0.0.0.0"])
def test_every_way_to_write_every_address_is_known(host: str) -> None:
    assert Address(host, 1).is_any
    assert not Address(host, 1).is_loopback


@pytest.mark.parametrize("host", ["10.0.0.1", "::1", "h", "1", "zero", "0.h", "127.0.0.1"])
def test_other_addresses_are_not_every_address(host: str) -> None:
    assert not Address(host, 1).is_any


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "::1", "localhost", "127.9.9.9"])
def test_what_only_this_machine_can_reach_is_known(host: str) -> None:
    assert Address(host, 1).is_loopback
