"""How a planted bug takes the place of what is right, and never of nothing.

What is replaced must be there, with the parameters that its replacement expects, or the node does not start: a name
that was changed must not make of a mutation none at all.
"""

from collections.abc import Callable, Collection
from functools import wraps
from inspect import signature
from types import ModuleType
from typing import Any


class Gone(Exception):
    """What a mutation replaces is not there (any more), or is another thing."""


def replace_function(owner: type | ModuleType, name: str, wrong: Callable[..., Any]) -> None:
    """``wrong`` gets what it replaces as its first argument, then the arguments. Raises Gone.

    ``owner``: the class that defines it, or the module in which whoever calls it looks it up.
    """
    right = vars(owner).get(name)
    if not callable(right):
        raise Gone(f"{owner.__name__} has no function {name} any more: the mutation needs another place")
    expected, found = list(signature(wrong).parameters)[1:], list(signature(right).parameters)
    if expected != found:
        raise Gone(f"{owner.__name__}.{name} has the parameters {found}, the mutation was made for {expected}")

    @wraps(right)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        return wrong(right, *args, **kwargs)

    setattr(owner, name, replacement)


def replace_value(owner: ModuleType, name: str, wrong: object) -> None:
    """A constant of a module. Raises Gone when there is none, or one of another type."""
    if type(vars(owner).get(name)) is not type(wrong):
        raise Gone(f"{owner.__name__} has no {name} of the type {type(wrong).__name__} any more")
    setattr(owner, name, wrong)


def require(owner: type, names: Collection[str]) -> None:
    """Attributes of a class that a mutation reads or changes. Raises Gone."""
    if missing := [name for name in names if not hasattr(owner, name)]:
        raise Gone(f"{owner.__name__} has no {', '.join(missing)} any more: the mutation needs another place")
