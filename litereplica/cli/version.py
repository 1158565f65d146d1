"""``litereplica version``: what to write into a report about a problem.

Knows where each version is found. Loads nothing that only runs would need.
"""

import ctypes
import platform
import sqlite3
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Final

import click

from litereplica import __version__
from litereplica.cli.options import Options, command, print_json

# libfuse changed its soname with 3.17.
LIBFUSE: Final = ("libfuse3.so.3", "libfuse3.so.4")


@command("version", short_help="Versions of everything that matters.")
def version(options: Options) -> None:
    """Print our version and those of Python, SQLite, pyfuse3, libfuse and the kernel."""
    versions = {
        "litereplica": __version__,
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "pyfuse3": _package("pyfuse3"),
        "libfuse": _libfuse(),
        "kernel": platform.release(),
    }
    if options.json:
        print_json(versions)
    else:
        for name, found in versions.items():
            click.echo(f"{name:<12}{found or 'not found'}")


def _package(name: str) -> str | None:
    try:
        return installed_version(name)
    except PackageNotFoundError:
        return None


def _libfuse() -> str | None:
    for name in LIBFUSE:
        try:
            text = ctypes.CDLL(name).fuse_pkgversion
        except (OSError, AttributeError):
            continue
        text.restype = ctypes.c_char_p
        return str(text().decode("ascii", "replace"))
    return None
