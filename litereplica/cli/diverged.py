"""``litereplica diverged``: transactions that this node had and its cluster does not.

Knows how entries are shown and asked about. Works on the data directory of the configuration, whether its node runs or
not: entries are whole once they are listed, and nobody changes one.
"""

import dataclasses
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from litereplica.cli.options import Options, SharedOptions, command, load, print_json
from litereplica.cli.table import table
from litereplica.errors import LitereplicaError, Refused, Unavailable

if TYPE_CHECKING:  # slow to import: only when it is about to be used
    from litereplica.store.diverged import Entry


class _Group(SharedOptions, click.Group):
    command_class = SharedOptions


@click.group("diverged", cls=_Group, short_help="Transactions that this node had and the cluster does not.")
def diverged() -> None:
    """Transactions that this node had and its cluster does not: list them, get them out, drop them.

    After a takeover a node may return with transactions that nobody else has. It keeps them, with the database as it
    had it, and follows the others. Reads the data directory of the configuration; the node may run.
    """


@command("list", short_help="What is kept.")
def list_(options: Options) -> None:
    """Show what is kept, oldest id first.

    KEPT says what there is: the database and its records, the records alone (there was no room), or a whole log only.
    """
    from litereplica.store.diverged import Entry, entries  # noqa: PLC0415

    found: list[Entry] = []
    problem: LitereplicaError | None = None
    try:
        for each in entries(_folder(options)):
            if isinstance(each, Entry):
                found.append(each)
            else:
                problem = problem or each
    except OSError as error:
        raise _unreadable(error) from error
    if options.json:
        print_json([_document(entry) for entry in found])
    elif found:
        click.echo("\n".join(_table(found)))
    elif problem is None:
        click.echo("nothing diverged: the cluster has all that this node ever had")
    if problem is not None:
        raise problem


@command("export", short_help="A database file as this node had it.")
@click.argument("identifier", metavar="ID")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def export(options: Options, identifier: str, file: Path) -> None:
    """Write the database as this node had it to FILE, which must not exist.

    Every page is compared with the checksum that it had. It is an ordinary SQLite file: open it, and bring over what is
    missed.
    """
    from litereplica.store.diverged import export_entry, find_entry  # noqa: PLC0415

    try:
        folder = _folder(options)
        entry = find_entry(folder, identifier)
        label, hidden = f"exporting {entry.database}", not sys.stderr.isatty()
        with click.progressbar(length=entry.pages, label=label, file=sys.stderr, hidden=hidden) as bar:
            export_entry(folder, entry, file, lambda done, _: bar.update(done - bar.pos))
    except OSError as error:
        raise _unreadable(error) from error
    if options.json:
        print_json({**_document(entry), "file": str(file)})
    else:
        click.echo(f"{file}: {entry.database} at {entry.end}, {entry.pages} pages of {entry.page_size} bytes")


@command("drop", short_help="Remove one entry for good.")
@click.argument("identifier", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
def drop(options: Options, identifier: str, yes: bool) -> None:
    """Remove one entry for good: nobody has its transactions then."""
    from litereplica.store.disk import Disk  # noqa: PLC0415
    from litereplica.store.diverged import drop_entry, find_entry  # noqa: PLC0415

    try:
        folder = _folder(options)
        entry = find_entry(folder, identifier)
        if not yes:
            _ask(entry)
        drop_entry(Disk(), folder, entry)
    except OSError as error:
        raise _unreadable(error) from error
    if options.json:
        print_json(_document(entry))
    else:
        click.echo(f"{entry.id} is dropped")


def _ask(entry: "Entry") -> None:
    what = f"{entry.records} transactions of {entry.database}, up to {entry.end}"
    if not sys.stdin.isatty():
        raise Refused(f"to remove {what} for good, say --yes")
    if not click.confirm(f"Remove {what}, for good?", err=True):
        raise Refused("nothing was removed")


def _folder(options: Options) -> Path:
    root = load(options).data.dir
    if not (root / "format").exists():
        raise Refused(
            f"{root} is no data directory of a node: check data.dir in the configuration, or give one with -c"
        )
    return root / "diverged"


def _unreadable(error: OSError) -> Unavailable:
    where = f" {error.filename}" if error.filename else ""
    return Unavailable(f"{error.strerror or error}:{where}; check the disk, its room, and the rights of this user")


def _document(entry: "Entry") -> dict[str, Any]:
    fields = dataclasses.asdict(entry)
    return fields | {
        "base": str(entry.base),
        "end": str(entry.end),
        "first": _time(entry.first_ms),
        "last": _time(entry.last_ms),
        "kept": _kept(entry),
    }


def _kept(entry: "Entry") -> str:
    if entry.log_only:
        return "log only"
    if not entry.pages:
        return "records (it was dropped)"
    return "database" if entry.whole else "records"


def _table(found: "list[Entry]") -> list[str]:
    headers = ("ID", "DATABASE", "AFTER", "UP TO", "TRANSACTIONS", "EPOCH", "LAST WRITTEN", "NOT IN", "KEPT")
    rows = [
        (
            entry.id,
            entry.database,
            f"{entry.base.txid:016x}",
            f"{entry.end.txid:016x}",
            entry.records,
            f"{entry.first_epoch}" if entry.first_epoch == entry.last_epoch else _epochs(entry),
            _time(entry.last_ms),
            f"{entry.primary}, epoch {entry.primary_epoch}" if entry.primary else None,
            _kept(entry),
        )
        for entry in found
    ]
    return table(headers, rows)


def _epochs(entry: "Entry") -> str:
    return f"{entry.first_epoch} to {entry.last_epoch}"


def _time(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


for _each in (list_, export, drop):
    diverged.add_command(_each)
