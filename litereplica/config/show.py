"""The settings in force, as a document that a person reads and that can be loaded again.

Knows how each value is written. Does not know where it came from. Secrets and passwords in URLs are replaced.
"""

import dataclasses
from pathlib import Path
from typing import Any

from litereplica.config.settings import Settings, key_of
from litereplica.config.units import Address, Secret, format_duration, format_size, without_password


def settings_document(settings: Settings) -> dict[str, Any]:
    """Return sections, keys and values as the file has them: text, booleans and lists; what is not set is left out."""
    return _section(settings)


def _section(section: Any) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for attribute in dataclasses.fields(section):
        value = getattr(section, attribute.name)
        if value is not None:
            document[key_of(attribute)] = _value(value, attribute.name)
    return document


def _value(value: Any, name: str) -> Any:
    if isinstance(value, Address | Path):
        return str(value)
    if dataclasses.is_dataclass(value):
        return _section(value)
    if isinstance(value, tuple):
        return [without_password(item) for item in value]
    if name.endswith("_s"):
        return format_duration(value)
    if name.endswith("_bytes"):
        return format_size(value)
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    if isinstance(text, Secret):
        return "***" if text else ""
    return without_password(text)
