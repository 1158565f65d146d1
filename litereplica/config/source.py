"""Where values come from: the YAML text and the environment, brought together as one tree of text.

Knows YAML's syntax, ``${VAR}`` and ``LITEREPLICA__…``, and remembers for every key where it was written. Does not
know types: every scalar stays text until the field that takes it says what it is, so ``name: on`` is the name "on",
and a value means the same in the file, behind a ``${VAR}`` and in the environment.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import yaml

Path = tuple[str, ...]
Value = str | list[str] | dict[str, "Value"]

ENVIRONMENT_PREFIX: Final = "LITEREPLICA__"

# The deepest key of ours has four levels. The bound ends a document that contains itself (`&a {b: *a}`).
_DEEPEST: Final = 8
_NAME_AND_DEFAULT: Final = r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}\n]*))?\}"
_WHOLE_VARIABLE: Final = re.compile(r"\$?" + _NAME_AND_DEFAULT)
_VARIABLE: Final = re.compile(r"\$(?P<escaped>\$\{)|" + _NAME_AND_DEFAULT + r"|\$\{")
_NULL: Final = "tag:yaml.org,2002:null"

# `${VAR}` stands for one value whatever is in it, but inside `{…}` and `[…]` YAML would read its braces as its own. So
# each is replaced by a mark of two private-use characters before YAML sees it, and put back in the scalar afterwards:
# a value can never add keys, lines or comments, and a variable in a comment is not looked up.
_MARK: Final = re.compile("\ue000([0-9]+)\ue001")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``place`` is ``FILE:LINE``, ``FILE`` or the environment variable."""

    place: str
    message: str

    def __str__(self) -> str:
        """``place: message``."""
        return f"{self.place}: {self.message}" if self.place else self.message


@dataclass(slots=True)
class Tree:
    """Every value that was given, as text, with the place of each key and what was already found to be wrong."""

    file: str
    values: dict[str, Value] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """Where a key, or failing that the section around it, was written."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, self.file)


def read_yaml(file: str, text: str, environ: Mapping[str, str]) -> Tree:
    """Read the text of a configuration file. Raises nothing: what is wrong is in the tree's problems."""
    tree = Tree(file)
    if "\ue000" in text:
        tree.problems.append(Problem(file, "not YAML: it holds the private-use character U+E000"))
        return tree
    variables: list[str] = []

    def mark(match: re.Match[str]) -> str:
        variables.append(match[0])
        return f"\ue000{len(variables) - 1}\ue001"

    try:
        root = yaml.compose(_WHOLE_VARIABLE.sub(mark, text), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        where = error.problem_mark or error.context_mark
        place = f"{file}:{where.line + 1}" if where else file
        tree.problems.append(Problem(place, f"not YAML: {error.problem}; look at the indentation and the brackets"))
        return tree
    except yaml.YAMLError as error:  # a character that YAML does not allow: it has no line
        tree.problems.append(Problem(file, "not YAML: " + " ".join(str(error).split())))
        return tree
    if isinstance(root, yaml.MappingNode):
        tree.values = _Reader(tree, variables, environ).mapping(root, ())
    elif root is not None and root.tag != _NULL:
        tree.problems.append(Problem(f"{file}:{root.start_mark.line + 1}", "expected sections such as 'mount:'"))
    return tree


def overlay_environment(
    tree: Tree, environ: Mapping[str, str], keys: Collection[Path], unknown: Callable[[Path], str]
) -> None:
    """Put ``LITEREPLICA__SECTION__KEY`` variables over the file's values; an empty one restores the default.

    ``keys`` are the keys that take a value; ``unknown`` words the complaint about any other.
    """
    by_name = {ENVIRONMENT_PREFIX + "__".join(path).upper(): path for path in keys}
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        path = by_name.get(name)
        if path is None:
            given = tuple(name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__"))
            tree.problems.append(Problem(name, unknown(given)))
            continue
        _put(tree, path, environ[name], name)


def _put(tree: Tree, path: Path, text: str, place: str) -> None:
    section = tree.values
    for key in path[:-1]:
        inner = section.setdefault(key, {})
        if not isinstance(inner, dict):  # the file has a text where a section belongs, and is told so
            return
        section = inner
    if text:
        section[path[-1]] = text
        tree.places[path] = place
    else:
        section.pop(path[-1], None)
        tree.places.pop(path, None)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Replace ``${VAR}`` and ``${VAR:-default}`` (unset or empty takes the default); ``$${`` stands for ``${``.

    Raises ValueError that names the variable which has neither a value nor a default.
    """

    def value(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match["escaped"]:
            return "${"
        if name is None:
            raise ValueError(f"expected ${{VAR}} or ${{VAR:-default}}, found {text!r}; write $${{ for a plain ${{")
        given = environ.get(name)
        if default is not None:
            return given or default
        if given is None:
            raise ValueError(f"the variable {name} is not set; set it, or write ${{{name}:-default}}")
        return given

    return _VARIABLE.sub(value, text)


class _Reader:
    """Walks YAML's nodes (not its values: nodes know their lines and keep the text)."""

    def __init__(self, tree: Tree, variables: list[str], environ: Mapping[str, str]) -> None:
        self._tree = tree
        self._variables = variables
        self._environ = environ

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Value]:
        values: dict[str, Value] = {}
        if len(path) > _DEEPEST:
            self._wrong(node, f"{path[0]!r} is nested too deeply")
            return values
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._wrong(key_node, "expected a plain word as a key")
                continue
            key = self._unmarked(key_node)
            inner = (*path, key)
            line = key_node.start_mark.line + 1
            if key in seen:
                self._wrong(key_node, f"'{'.'.join(inner)}' is given twice, first in line {seen[key]}")
                continue
            seen[key] = line
            self._tree.places[inner] = f"{self._tree.file}:{line}"
            value = self._value(value_node, inner)
            # Nothing, null and empty text all mean "not given": `advertise: ${ADVERTISE:-}` leaves the default.
            if value not in (None, ""):
                values[key] = value
        return values

    def _value(self, node: yaml.Node, path: Path) -> Value | None:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self._item(item, path) for item in node.value]
        if isinstance(node, yaml.ScalarNode) and node.tag != _NULL:
            return self._text(node)
        return None

    def _item(self, node: yaml.Node, path: Path) -> str:
        if isinstance(node, yaml.ScalarNode):
            return self._text(node)
        self._wrong(node, f"'{'.'.join(path)}' takes a list of plain texts")
        return ""

    def _text(self, node: yaml.ScalarNode) -> str:
        try:
            return expand(self._unmarked(node), self._environ)
        except ValueError as error:
            self._wrong(node, str(error))
            return ""

    def _unmarked(self, node: yaml.ScalarNode) -> str:
        return _MARK.sub(lambda match: self._variables[int(match[1])], node.value)

    def _wrong(self, node: yaml.Node, message: str) -> None:
        self._tree.problems.append(Problem(f"{self._tree.file}:{node.start_mark.line + 1}", message))
