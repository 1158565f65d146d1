"""``litereplica diverged export`` for many entries in one process: after a partition each database has one or more.

Run as ``python -m jepsen.cluster.exports CONFIG FOLDER ID…``: the entry of each ID becomes a database in FOLDER, whose
name is its place among the IDs. Answers a JSON list with what each said, empty when it was done. Knows the command, and
nothing of what is kept.
"""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from litereplica.cli.main import main as litereplica
from tests.support.nodes import ROOT

START_LIMIT_S: Final = 30.0
EACH_LIMIT_S: Final = 2.0


def export(config: Path, identifiers: Sequence[str], folder: Path) -> list[str]:
    """What went wrong with each, empty when it is there: as ``folder``/0, /1 … Raises SubprocessError."""
    command = [sys.executable, "-m", "jepsen.cluster.exports", str(config), str(folder), *identifiers]
    limit_s = START_LIMIT_S + EACH_LIMIT_S * len(identifiers)
    done = subprocess.run(command, capture_output=True, timeout=limit_s, cwd=ROOT, check=True)
    found: list[str] = json.loads(done.stdout)
    return found


def _one(*arguments: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            litereplica(list(arguments))
        except SystemExit as end:
            return "" if not end.code else f"exit {end.code}: {said.getvalue()}"


def main() -> None:
    """All of them."""
    config, folder, *identifiers = sys.argv[1:]
    found = [
        _one("-c", config, "diverged", "export", each, str(Path(folder, str(place))))
        for place, each in enumerate(identifiers)
    ]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
