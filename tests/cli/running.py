"""Runs the real command line in a process of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Loading the libraries on a busy machine; a command that needs longer hangs.
LIMIT_S = 60


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error, without the program's name."""
        (line,) = self.err.splitlines()
        assert line.startswith("litereplica: "), line
        return line.removeprefix("litereplica: ")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """``litereplica`` in a directory of its own, with an environment that holds nothing of ours but an empty file."""

    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        ours = {"LITEREPLICA_CONFIG": str(self.directory / "litereplica.yml"), "PYTHONPATH": str(ROOT)}
        return {name: value for name, value in os.environ.items() if not name.startswith("LITEREPLICA")} | ours

    def configure(self, text: str) -> None:
        (self.directory / "litereplica.yml").write_text(text, encoding="utf-8")

    def __call__(self, *arguments: object, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "litereplica", *map(str, arguments)],
            cwd=self.directory,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)
