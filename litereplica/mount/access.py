"""Who may write here.

Knows this node's role as the mount sees it, and the process that applies transactions. Does not decide the role.
"""

from collections.abc import Callable
from pathlib import Path

# ``.lag`` before the first contact with a primary (LiteFS's format).
UNKNOWN_LAG_MS = 2_147_483_647


class Access:
    """Changed by the node only; read at each open and each commit."""

    __slots__ = (
        "applier_pid",
        "fenced",
        "lag_ms",
        "primary",
        "primary_name",
        "wal_removed",
        "wal_restarted",
        "writer_gone",
    )

    def __init__(self) -> None:
        self.primary = False
        self.primary_name: str | None = None
        self.applier_pid = 0
        # A reason why no commit is accepted although this node is the primary.
        self.fenced: str | None = None
        # Told when a WAL begins again from its start: (database, bytes of the file).
        self.wal_restarted: Callable[[str, int], None] = lambda _name, _size: None
        self.wal_removed: Callable[[str], None] = lambda _name: None
        # Told when a process that had a WAL open is dead, or must be: (database, salts of the WAL, committed frames).
        self.writer_gone: Callable[[str, int, int, int], None] = lambda _name, _salt1, _salt2, _frames: None
        self.lag_ms: Callable[[], int] = lambda: UNKNOWN_LAG_MS

    def is_applier(self, task_id: int) -> bool:
        """The kernel names the thread that asked; the applier has several."""
        if not self.applier_pid:
            return False
        if task_id == self.applier_pid:
            return True
        try:
            status = Path(f"/proc/{task_id}/status").read_text(encoding="ascii", errors="replace")
        except OSError:
            return False
        return f"\nTgid:\t{self.applier_pid}\n" in status
