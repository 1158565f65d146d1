"""``litereplica verify``: whether a database is what its log says, and what another node has.

Knows how two nodes are compared although both go on: each recomputes the checksum of its pages at a position of its
own, and the one that is further says what it had at the other's. Does not know how a node verifies.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click

from litereplica.cli.options import URL_VARIABLE, Options, command, load, node_url, print_json
from litereplica.cli.table import paint
from litereplica.errors import Corrupt, Refused, Unavailable

_SHOWN_PAGES: Final = 20


@command("verify", short_help="Compare a database with its log, and with another node.")
@click.argument("db")
@click.option("--against", metavar="URL", help="Verify there too, and compare the two at an equal position.")
def verify(options: Options, db: str, against: str | None) -> None:
    """Recompute the checksum of database DB from its pages on the disk, while applications go on.

    Pages whose newest content is not yet in the database file are taken from the log, whose own checksums are compared.
    The result must be the checksum of the position, of the log's last record and of the table of page checksums.

    Without a running node, and without --url, the data directory of the configuration is read instead.

    Exit code 4 when pages are damaged or the two nodes differ, 3 when there is no answer, 1 when there is no such
    database.
    """
    url = node_url(options)
    try:
        ours = _verify(url, db)
    except Unavailable as error:
        if options.url or os.environ.get(URL_VARIABLE):
            raise
        root = load(options).data.dir
        if not (root / "format").exists():
            raise
        url = str(root)
        ours = _verify_stopped(root, db, error)
    if against is None:
        _show(options, {**ours, "url": url})
        _raise_unless_sound(url, ours)
        return
    other_url = (against if "://" in against else f"http://{against}").rstrip("/")
    theirs = _verify(other_url, db)
    equal = _is_equal((url, ours), (other_url, theirs), db)
    _show(options, {**ours, "url": url, "against": {**theirs, "url": other_url}, "equal": equal})
    _raise_unless_sound(url, ours)
    _raise_unless_sound(other_url, theirs)
    if equal is None:
        raise Unavailable(
            f"both copies of {db} are sound, but at different positions that no log connects any more: ask again"
        )
    if not equal:
        raise Corrupt(
            f"{db} has another history at {other_url} than at {url}: one of the two nodes needs a snapshot, see the "
            f"logs of both"
        )


def _verify(url: str, db: str) -> dict[str, Any]:
    """The result of one node, with a progress bar on standard error when that is a terminal."""
    from litereplica.cli.client import lines  # noqa: PLC0415 - only when it is about to be used

    with _progress(f"reading {db} at {url}") as tell:
        for line in lines(url, "/verify", {"db": db}):
            if line.get("type") == "result":
                return line
            if line.get("type") == "error":
                raise _ERRORS.get(str(line.get("error")), Unavailable)(str(line.get("message")))
            tell(int(line.get("pages", 0)), int(line.get("of", 0)))
    raise Unavailable(f"{url} ended its answer before the result: ask again, or look at that node's log")


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error when that is a terminal; told (pages done, pages in all)."""
    with click.progressbar(length=0, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def tell(done: int, total: int) -> None:
            bar.length = total
            bar.update(max(0, done - bar.pos))

        yield tell


def _verify_stopped(root: Path, db: str, error: Unavailable) -> dict[str, Any]:
    """The result of reading the data directory of a node that does not run."""
    from litereplica.store.stopped import verify_stopped  # noqa: PLC0415 - only when it is about to be used

    click.echo(f"{error.message.partition(';')[0]}: reading {root} itself", err=True)
    try:
        with _progress(f"reading {db}") as tell:
            found = verify_stopped(root, db, tell)
    except OSError as reason:
        raise Unavailable(f"{root} cannot be read ({reason}): check the disk and its rights") from reason
    document = dataclasses.asdict(found)
    position = document.pop("position")
    hexadecimal = {
        "txid": position["txid"],
        "checksum": position["checksum"],
        "recomputed": found.recomputed,
        "page_checksums": document.pop("table"),
        "log": document.pop("logged"),
    }
    return {
        "db": db,
        "sound": found.sound,
        **{name: f"{value:016x}" for name, value in hexadecimal.items()},
        "page_size": found.page_size,
        "pages": found.page_count,
        "log_pages": found.log_pages,
        "damaged_count": len(found.damaged),
        "damaged": list(found.damaged),
    }


_ERRORS: Final[dict[str, type[Corrupt | Refused | Unavailable]]] = {"corrupt": Corrupt, "refused": Refused}


def _is_equal(one: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]], db: str) -> bool | None:
    """Whether both had the same checksum at the lower of their positions; None when that is no longer known.

    Every later position is made from that one by records whose checksums were compared, on both nodes.
    """
    from litereplica.cli.client import get  # noqa: PLC0415 - only when it is about to be used

    (_, behind), (url, ahead) = sorted((one, other), key=lambda each: str(each[1]["txid"]))
    if behind["txid"] == ahead["txid"]:
        return bool(behind["checksum"] == ahead["checksum"])
    if "://" not in url:
        return None  # a node that does not run says nothing of its past
    found = get(url, "/position", {"db": db, "txid": str(behind["txid"])})["checksum"]
    return None if found is None else bool(found == behind["checksum"])


def _raise_unless_sound(url: str, found: dict[str, Any]) -> None:
    if found["sound"]:
        return
    pages = found["damaged"]
    if pages:
        shown = ", ".join(map(str, pages[:_SHOWN_PAGES]))
        more = f" and {found['damaged_count'] - _SHOWN_PAGES} more" if found["damaged_count"] > _SHOWN_PAGES else ""
        what = f"page {shown}{more} of {found['db']} at {url} is damaged"
    else:
        what = f"{found['db']} at {url} does not add up to its position {found['txid']}/{found['checksum']}"
    raise Corrupt(f"{what}: a replica fetches it again by itself; on the primary see docs/operations.md, Damage")


def _show(options: Options, document: dict[str, Any]) -> None:
    document.pop("type", None)
    if "against" in document:
        document["against"].pop("type", None)
    if options.json:
        print_json(document)
        return
    for found in (document, document.get("against")):
        if found is not None:
            click.echo("\n".join(_lines(found)))
    if "equal" in document:
        answer = {True: paint("yes", "green"), False: paint("no", "red"), None: "not known: ask again"}
        click.echo(f"{'equal':<16}{answer[document['equal']]}")


def _lines(found: dict[str, Any]) -> list[str]:
    verdict = paint("yes", "green") if found["sound"] else paint("no", "red")
    lines = [
        ("node", found["url"]),
        ("database", found["db"]),
        ("position", f"{found['txid']}/{found['checksum']}"),
        ("recomputed", found["recomputed"]),
        ("page checksums", found["page_checksums"]),
        ("last record", found["log"] or "no longer kept"),
        ("pages", f"{found['pages']} of {found['page_size']} bytes, {found['log_pages']} of them newer in the log"),
    ]
    if found["damaged"]:
        pages = ", ".join(map(str, found["damaged"][:_SHOWN_PAGES]))
        lines.append(("damaged pages", f"{found['damaged_count']}: {pages}"))
    return [*(f"{name:<16}{value}" for name, value in lines), f"{'sound':<16}{verdict}"]
