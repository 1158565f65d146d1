"""From a file and the environment to checked settings.

Knows where the file is looked for, how text becomes each type, and how to say what is wrong: every problem at once,
each with its line. Does not know which settings fit together (check.py) or what they mean.
"""

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, get_args, get_origin

import yaml
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

from litereplica.config import source
from litereplica.config.check import check_settings
from litereplica.config.settings import Settings, key_of
from litereplica.config.source import Problem, Tree
from litereplica.config.units import (
    Address,
    Bytes,
    HttpUrl,
    Seconds,
    Secret,
    parse_address,
    parse_duration,
    parse_size,
    parse_url,
)
from litereplica.errors import Misconfigured

FILE_VARIABLE: Final = "LITEREPLICA_CONFIG"
LOCAL_FILE: Final = Path("litereplica.yml")
SYSTEM_FILE: Final = Path("/etc/litereplica.yml")

# A configuration is a page of text; more than this is some other file, which is not read into memory to find out.
_LARGEST_FILE_BYTES: Final = 2**20

_TRUE: Final = frozenset({"true", "yes", "on"})
_FALSE: Final = frozenset({"false", "no", "off"})


class WrongSettings(Misconfigured):
    """The configuration has problems. The message is one line about the first; ``problems`` has all of them."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        self.problems = problems
        message = str(problems[0])
        if len(problems) > 1:
            more = len(problems) - 1
            message += f" (and {more} more problem{'s' if more > 1 else ''}; 'litereplica config check' lists all)"
        super().__init__(message)


def find_file(path: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file in force: ``path``, else $LITEREPLICA_CONFIG, else the first of the usual two that exists.

    None when there is none, and the defaults hold. A file that was asked for is returned whether it exists or not.
    """
    if path is not None:
        return path
    if environ.get(FILE_VARIABLE):
        return Path(environ[FILE_VARIABLE])
    return next((file for file in (LOCAL_FILE, SYSTEM_FILE) if file.exists()), None)


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Read, complete and check the settings; ``path`` is the file named on the command line, if any.

    Raises Misconfigured: WrongSettings with every problem, or about a file that cannot be read.
    """
    file = find_file(path, environ)
    tree = Tree("") if file is None else source.read_yaml(str(file), _read_text(file), environ)
    source.overlay_environment(tree, environ, [key for key, leaf in _KEYS.items() if leaf], _unknown_key)
    settings: Settings | None = None
    try:
        settings = _CONVERTER.structure(tree.values, Settings)
    except ClassValidationError as error:
        tree.problems.extend(_problems(tree, error, ()))
    if settings is not None and not tree.problems:
        tree.problems.extend(Problem(tree.place(key), message) for key, message in check_settings(settings))
    if settings is None or tree.problems:
        raise WrongSettings(tuple(sorted(dict.fromkeys(tree.problems), key=_order)))
    return settings


def _order(problem: Problem) -> tuple[str, int]:
    """In the order of the file."""
    name, _, line = problem.place.rpartition(":")
    return (name, int(line)) if line.isdigit() else (problem.place, 0)


def _read_text(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            data = stream.read(_LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise Misconfigured(
            f"cannot read the configuration file {file}: {os.strerror(error.errno or 0)}; "
            f"name another one with -c or in {FILE_VARIABLE}"
        ) from error
    if len(data) > _LARGEST_FILE_BYTES:
        raise Misconfigured(f"{file} is larger than 1 MiB: that is not a configuration file; name another one with -c")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Misconfigured(f"{file}:{line}: not text in UTF-8; name another configuration file with -c") from error


# ---------------------------------------------------------------------------------------------- text to typed values
def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected one value, found a {'section' if isinstance(value, dict) else 'list'}")
    return value


def _boolean(value: object, _: Any = None) -> bool:
    text = _text(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError(f"expected true or false, found {value!r}")
    return text in _TRUE


def _words(value: object, _: Any = None) -> tuple[str, ...]:
    """A list, or a text that is split as a shell would; the environment gives a list as YAML: ``["a", "b c"]``."""
    if isinstance(value, list):
        return tuple(value)
    text = _text(value)
    if not text.startswith("["):
        return tuple(shlex.split(text))
    try:
        items = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds nothing but text, lists and dicts
    except yaml.YAMLError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"expected a list of texts, found {text!r}")
    return tuple(items)


def _urls(value: object, _: Any = None) -> tuple[HttpUrl, ...]:
    return tuple(parse_url(item) for item in _words(value))


def _integer(value: object, _: Any = None) -> int:
    text = _text(value)
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
        raise ValueError(f"expected a whole number such as 0, 10 or -5, found {text!r}")
    return int(text)


def _origin(kind: Any) -> object:
    return get_origin(kind)


def _literal(value: object, kind: Any) -> str:
    text = _text(value)
    choices = get_args(kind)
    if text not in choices:
        raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}, found {text!r}")
    return text


def _section(kind: type) -> Callable[[object, Any], Any]:
    """Make cattrs' own structuring of a class, which takes a mapping for granted, say so when it gets another thing."""
    renamed: dict[str, Any] = {
        attribute.name: override(rename=key_of(attribute)) for attribute in dataclasses.fields(kind)
    }
    structure: Callable[..., Any] = make_dict_structure_fn(kind, _CONVERTER, _cattrs_forbid_extra_keys=True, **renamed)

    def checked(value: object, _: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(f"expected a section (lines of 'key: value'), found {value!r}")
        return structure(value, kind)

    return checked


_CONVERTER: Final = Converter(detailed_validation=True)
_CONVERTER.register_structure_hook(str, lambda value, _: _text(value))
_CONVERTER.register_structure_hook(bool, _boolean)
_CONVERTER.register_structure_hook(int, _integer)
_CONVERTER.register_structure_hook(Secret, lambda value, _: Secret(_text(value)))
_CONVERTER.register_structure_hook(Path, lambda value, _: Path(os.path.normpath(_text(value))))
_CONVERTER.register_structure_hook(Address, lambda value, _: parse_address(_text(value)))
_CONVERTER.register_structure_hook(Seconds, lambda value, _: parse_duration(_text(value)))
_CONVERTER.register_structure_hook(Bytes, lambda value, _: parse_size(_text(value)))
_CONVERTER.register_structure_hook(HttpUrl, lambda value, _: parse_url(_text(value)))
_CONVERTER.register_structure_hook_func(lambda kind: _origin(kind) is tuple, _words)
_CONVERTER.register_structure_hook_func(lambda kind: kind == tuple[HttpUrl, ...], _urls)
_CONVERTER.register_structure_hook_func(lambda kind: _origin(kind) is Literal, _literal)
_CONVERTER.register_structure_hook_factory(
    lambda kind: dataclasses.is_dataclass(kind) and kind is not Address, _section
)


# ------------------------------------------------------------------------------------------------------ what is wrong
def _known_keys(kind: type, path: source.Path = ()) -> Iterator[tuple[source.Path, bool]]:
    """Every key under a class of settings, and whether it takes a value (True) or is a section (False)."""
    for attribute in dataclasses.fields(kind):
        inner = (*path, key_of(attribute))
        members = get_args(attribute.type) if isinstance(attribute.type, UnionType) else (attribute.type,)
        section = next((m for m in members if dataclasses.is_dataclass(m) and m is not Address), None)
        yield inner, section is None
        if isinstance(section, type):
            yield from _known_keys(section, inner)


_KEYS: Final = dict(_known_keys(Settings))


def _unknown_key(path: source.Path) -> str:
    """Word the complaint about a key that is not ours, naming the nearest that is."""
    name = ".".join(path)
    if path in _KEYS:
        inside = next(".".join(key) for key in _KEYS if key[:-1] == path)
        return f"'{name}' is a section; set a key in it, such as '{inside}'"
    siblings = {key[-1]: ".".join(key) for key in _KEYS if key[:-1] == path[:-1]}
    elsewhere = [".".join(key) for key in _KEYS if key[-1] == path[-1]]
    near = (
        [siblings[key] for key in difflib.get_close_matches(path[-1], siblings, n=1)]
        or elsewhere
        or difflib.get_close_matches(name, [".".join(key) for key in _KEYS], n=1, cutoff=0.8)
    )
    if near:
        return f"unknown key '{name}'; did you mean '{near[0]}'?"
    known = siblings.values() or [key[0] for key in _KEYS if len(key) == 1]
    return f"unknown key '{name}'; known here: {', '.join(known)}"


def _problems(tree: Tree, error: BaseException, path: source.Path) -> Iterator[Problem]:
    if isinstance(error, ClassValidationError):
        keys = {attribute.name: key_of(attribute) for attribute in dataclasses.fields(error.cl)}
        of_fields, of_class = error.group_exceptions()
        for inner, note in of_fields:
            yield from _problems(tree, inner, (*path, keys[note.name]))
        for other in of_class:
            yield from _problems(tree, other, path)
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            unknown = (*path, key)
            yield Problem(tree.place(unknown), _unknown_key(unknown))
    elif isinstance(error, KeyError):
        yield Problem(tree.place(path), f"'{'.'.join(path)}' is missing")
    else:
        yield Problem(tree.place(path), f"'{'.'.join(path)}': {error}")
