"""How log lines look and where they go.

Knows the two forms: text, one line of key=value for people, and JSON lines for machines; both on standard error.
Does not know any event. Modules log with ``structlog.get_logger(__name__)`` and name an event and its fields; a line
below the level costs one attribute look-up and an empty call.
"""

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_COLOURS: Final = {"debug": "\x1b[2m", "warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET: Final = "\x1b[0m"
_FIRST: Final = ("ts", "level", "event")


def configure_logs(form: Literal["text", "json"] = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Set up every logger of this process; called once by each process before its first line.

    ``level`` is debug, info, warning or error. ``stream`` is standard error unless told. Lines of libraries that use
    the standard library's logging take the same way, from level warning up.
    """
    target = sys.stderr if stream is None else stream
    least = logging.getLevelNamesMapping()[level.upper()]
    render: Processor = _JsonLine() if form == "json" else _TextLine(colour=target.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*processors, render],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=processors,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(least, logging.WARNING))


class _JsonLine:
    """One JSON object: ts (RFC 3339, UTC), level, event, then the fields in the order they were given."""

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> str:
        return json.dumps(_ordered(event), default=str, ensure_ascii=False, separators=(",", ":"))


class _TextLine:
    """``TIME level event key=value …``; a value with blanks or quotes is quoted, so a line is always one line."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> str:
        fields = _ordered(event)
        exception = fields.pop("exception", None)
        stack = fields.pop("stack", None)
        level = str(fields.pop("level"))
        head = f"{fields.pop('ts')} {level:<7} {_one_line(str(fields.pop('event')))}"
        line = " ".join([head, *(f"{key}={_quoted(value)}" for key, value in fields.items())])
        if self._colour and level in _COLOURS:
            line = f"{_COLOURS[level]}{line}{_RESET}"
        # A traceback is the one thing that is read better as the lines it has.
        return "\n".join(str(part) for part in (line, exception, stack) if part)


def _ordered(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: event[key] for key in _FIRST if key in event} | {
        key: value for key, value in event.items() if key not in _FIRST
    }


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text, ensure_ascii=False)[1:-1]


def _quoted(value: object) -> str:
    text = str(value)
    if text and text.isprintable() and not any(character in ' "=' for character in text):
        return text
    return json.dumps(text, ensure_ascii=False)
