"""Cookies, rules and headers."""

from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from litereplica.config import ProxySettings
from litereplica.config.proxy import ProxyRules
from litereplica.ltx.position import Position
from litereplica.proxy import cookie, headers
from litereplica.proxy.rules import Kind, Rules

POSITIONS = st.builds(Position, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)


@given(st.dictionaries(NAMES, POSITIONS, min_size=1, max_size=5), st.sampled_from([0, 60]))
def test_a_cookie_comes_back_as_it_was_set(positions: dict[str, Position], age_s: int) -> None:
    text = cookie.write("litereplica", positions, age_s)
    value = text.partition(";")[0]
    assert value.isascii()
    assert value.isprintable()
    assert not set(value) & set(' ",;\\')
    assert ("Max-Age" in text) == bool(age_s)
    assert cookie.parse([f"other=1; {value}; litereplicax=2"], "litereplica", positions) == positions


@given(st.text(max_size=200), st.text(max_size=20))
def test_nothing_that_a_client_sends_is_an_error(value: str, name: str) -> None:
    for text in (value, f"litereplica={value}", f"litereplica={name}={value}", f"{name}={value}; litereplica="):
        found = cookie.parse([text], "litereplica", ["app.db"])
        assert all(isinstance(at, Position) for at in found.values())


def test_only_the_named_databases_are_taken_from_a_cookie() -> None:
    text = f"litereplica=a.db={Position(1, 2)}&b.db={Position(3, 4)}"
    assert cookie.parse([text], "litereplica", ["b.db"]) == {"b.db": Position(3, 4)}


def test_the_first_rule_that_matches_decides_and_else_the_method() -> None:
    rules = Rules(
        ProxySettings(
            rules=ProxyRules(
                passthrough=("*.css", "/static/*"),
                always_forward=("/admin/login", "~^/items/[0-9]+$"),
                read_only=("/search*", "/static/x"),
            )
        )
    )
    table = [
        ("GET", "/", Kind.READ),
        ("HEAD", "/x", Kind.READ),
        ("POST", "/", Kind.WRITE),
        ("OPTIONS", "/", Kind.WRITE),
        ("PROPFIND", "/", Kind.WRITE),
        ("POST", "/a/b.css", Kind.PASS),
        ("GET", "/b.css.map", Kind.READ),
        ("POST", "/static/x", Kind.PASS),
        ("GET", "/admin/login", Kind.WRITE),
        ("GET", "/admin/login/", Kind.READ),
        ("GET", "/items/12", Kind.WRITE),
        ("GET", "/items/12/x", Kind.READ),
        ("POST", "/search", Kind.READ),
        ("POST", "/search/y\nz", Kind.READ),
        ("POST", "/x/search", Kind.WRITE),
    ]
    for method, path, kind in table:
        assert rules.kind(method, path) is kind, (method, path)


@given(st.lists(NAMES, max_size=5))
def test_hops_come_back_as_they_were_written(names: list[str]) -> None:
    text = headers.write_hops(names)
    assert headers.hops(CIMultiDict({headers.HOPS: text} if text else {})) == names


def test_a_client_cannot_take_away_where_it_comes_from() -> None:
    given_ = CIMultiDictProxy(CIMultiDict({"Connection": "X-Forwarded-For, X-Forwarded-Host, Via, Host", "Host": "h"}))
    sent = headers.for_upstream(given_, "10.0.0.9", "http")
    assert sent["X-Forwarded-For"] == "10.0.0.9"
    assert sent["X-Forwarded-Host"] == sent["Host"] == "h"
