"""A transaction that is open over a database file: its journal is there, its pages are in the file."""

from pathlib import Path

from litereplica.sqlite.journal import encode_journal_header, encode_original
from litereplica.store.database import Database
from litereplica.store.roll_back import journal_of
from tests.store.application import Content

NONCE = 7


def write_journal(path: Path, pages: int, originals: Content, size: int = 512) -> Path:
    """A live journal of the database file ``path``, which had ``pages`` pages."""
    journal = journal_of(path)
    journal.parent.mkdir(parents=True, exist_ok=True)
    records = [encode_original(pgno, page, NONCE) for pgno, page in originals.items()]
    journal.write_bytes(encode_journal_header(pages, size, NONCE) + b"".join(records))
    return journal


class OpenTransaction:
    """It has written ``pgnos``, and as many new pages as the file had, through to the file: over 4 MiB, as it were."""

    def __init__(self, database: Database, pgnos: list[int], *, grows: bool = True) -> None:
        self.database = database
        path, size = database.file_path, database.page_size
        self.before = path.read_bytes()
        self.pages = len(self.before) // size
        originals = {pgno: self.before[(pgno - 1) * size : pgno * size] for pgno in pgnos}
        self.journal = write_journal(path, self.pages, originals, size)
        for pgno in pgnos:
            database.open_pages.add(pgno, pgno)
        with path.open("r+b") as file:
            for pgno in pgnos:
                file.seek((pgno - 1) * size)
                file.write(b"\xee" * size)
            if grows:
                database.open_pages.add(self.pages + 1, 2 * self.pages)
                file.seek(0, 2)
                file.write(b"\xef" * len(self.before))

    def roll_back(self, journal_mode: str = "DELETE") -> None:
        """What SQLite does, all of it at once."""
        path = self.database.file_path
        with path.open("r+b") as file:
            file.write(self.before)
            file.truncate(len(self.before))
        if journal_mode == "DELETE":
            self.journal.unlink()
        else:
            with self.journal.open("r+b") as file:
                file.truncate(0)
        self.database.open_pages.close(rolled_back=True)
