"""Durations, sizes, addresses and URLs as people write them, and back.

Knows the notation. Does not know which key holds what. Every parser raises ValueError with a message that says what
was expected; whoever knows the key and the line adds them.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import inet_aton
from typing import Final, NewType
from urllib.parse import urlsplit

Seconds = NewType("Seconds", float)
Bytes = NewType("Bytes", int)
HttpUrl = NewType("HttpUrl", str)


class Secret(str):
    """A text that is never shown."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Three stars, or nothing when there is nothing to hide."""
        return repr("***") if self else "''"


NO_SECRET: Final = Secret("")
# Under this name a field's metadata has the key by which the file calls it, where that is not the field's own name.
KEY: Final = "key"

_NUMBER: Final = r"(\d{1,15}(?:\.\d{1,6})?)"
_DURATION: Final = re.compile(_NUMBER + r"(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(_NUMBER + r" ?([a-z]*)", re.ASCII | re.IGNORECASE)
_DURATION_UNITS: Final = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_SIZE_UNITS: Final = {
    "TiB": 2**40,
    "GiB": 2**30,
    "MiB": 2**20,
    "KiB": 2**10,
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "KB": 10**3,
    "B": 1,
}
_SIZE_UNITS_ANY_CASE: Final = {"": 1} | {unit.lower(): factor for unit, factor in _SIZE_UNITS.items()}

# A century and a 64-bit file size: beyond them arithmetic with clocks and offsets ends, and so does any honest setting.
_LONGEST_MS: Final = 100 * 365 * _DURATION_UNITS["d"]
_LARGEST_BYTES: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address. ``host`` is a name or an IP address without brackets; ``port`` 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_any(self) -> bool:
        """True when it stands for every address of the machine."""
        address = _ip(self.host)
        return address is not None and address.is_unspecified

    @property
    def is_loopback(self) -> bool:
        """True when no other machine can reach it. A name other than ``localhost`` is taken to be reachable."""
        address = _ip(self.host)
        return self.host == "localhost" if address is None else address.is_loopback


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a host is taken for, also in the old short forms (inet_aton(3): ``0``, ``127.1``)."""
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(inet_aton(host))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def parse_duration(text: str) -> Seconds:
    """Seconds in ``500ms``, ``10s``, ``5m``, ``1h``, ``7d`` or ``0``."""
    if text == "0":
        return Seconds(0.0)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"expected a duration such as 500ms, 10s, 5m or 1h, found {text!r}")
    milliseconds = Decimal(match[1]) * _DURATION_UNITS[match[2]]
    if milliseconds > _LONGEST_MS:
        raise ValueError(f"expected a duration of at most a hundred years, found {text!r}")
    return Seconds(float(milliseconds / 1000))


def format_duration(seconds: float) -> str:
    """The shortest notation with a whole number of the largest unit: 600.0 is ``10m``."""
    milliseconds = Decimal(repr(seconds)) * 1000
    for unit, factor in _DURATION_UNITS.items():
        if milliseconds and milliseconds % factor == 0:
            return f"{int(milliseconds / factor)}{unit}"
    return f"{milliseconds.normalize():f}ms" if milliseconds else "0"


def parse_size(text: str) -> Bytes:
    """Bytes in ``512``, ``64MiB``, ``1.5GiB`` or ``10MB``; powers of 1024 and of 1000."""
    match = _SIZE.fullmatch(text)
    factor = _SIZE_UNITS_ANY_CASE.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"expected a size such as 64MiB, 1GiB, 10MB or 512, found {text!r}")
    size = Decimal(match[1]) * factor
    if size != int(size):
        raise ValueError(f"expected a whole number of bytes, found {text!r}")
    if size > _LARGEST_BYTES:
        raise ValueError(f"expected a size below 8 EiB, found {text!r}")
    return Bytes(int(size))


def format_size(size: int) -> str:
    """A whole number of the largest unit of 1024 that fits, else of 1000, else plain bytes: 2**30 is ``1GiB``."""
    for unit, factor in _SIZE_UNITS.items():
        if size and factor > 1 and size % factor == 0:
            return f"{size // factor}{unit}"
    return str(size)


def parse_address(text: str) -> Address:
    """``host:port`` or ``[IPv6]:port``; the port may be 0."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        bracketed_ok = ":" in host
    else:
        bracketed_ok = ":" not in host
    if not (colon and host and bracketed_ok and port.isascii() and port.isdigit()) or re.search(r"[\s/@]", host):
        raise ValueError(f"expected host:port, such as 10.0.0.1:20203 or [::1]:20203, found {text!r}")
    if len(port) > 5 or int(port) > 65535:
        raise ValueError(f"expected a port of 0 to 65535, found {text!r}")
    return Address(host, int(port))


def parse_url(text: str) -> HttpUrl:
    """``http://host[:port]`` or https, without a path of its own; a slash at the end is dropped."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    else:
        valid = valid and parts.path in {"", "/"} and not parts.query and not parts.fragment
    if not valid or not text.isprintable() or " " in text:
        raise ValueError(f"expected a URL such as http://10.0.0.1:20202, found {without_password(text)!r}")
    return HttpUrl(text.rstrip("/"))


def without_password(url: str) -> str:
    """The URL with a password in it replaced by three stars."""
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", url)
