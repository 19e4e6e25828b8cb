"""http and https URLs read as browsers read them (url.spec.whatwg.org), since catalogues hold what browsers accepted: backslashes,
blanks, UTF-8, dot segments, IPv4 addresses in any notation, international names by UTS 46."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

import idna

from data_pipeline.pictures.headers import FetchError

PORTS = {"http": 80, "https": 443}
PATH_SAFE, QUERY_SAFE = "!$%&'()*+,/:;=@[\\]|", "!$%&()*+,/:;=?@[\\]^`{|}"
"""Besides letters, digits and -._~ what is sent as it stands; %, too: what is escaped stays so, what is not a right escape also."""
_BLANK = "".join(map(chr, range(33)))
_LEFT_OUT = dict.fromkeys(b"\t\n\r")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_NO_HOST_CHARACTER = re.compile(r"[\x00-\x20#%/:<>?@\[\\\]^|\x7f]")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


@dataclass(frozen=True)
class Url:
    """A URL that can be asked for."""

    scheme: str
    host: str
    """ASCII, lower case: a name, or an address in its usual notation, IPv6 without brackets."""
    port: int
    path: str
    query: str | None
    spelled: str
    """The host as it was written, in lower case."""
    is_address: bool

    @property
    def target(self) -> str:
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def authority(self) -> str:
        """As in the Host header: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host.rstrip(".")
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def place(self) -> str:
        """host:port as it was written."""
        return f"{self.spelled}:{self.port}"


def parse_url(text: str, base: Url | None = None) -> Url:
    """Args: base: where `text` came from, if it may be relative. Raises `FetchError`: scheme refused, malformed url.

    A user's name and password are left out: what is only theirs is not for a data set."""
    if not text.isascii():
        text = _SURROGATE.sub("\ufffd", text)
    text = text.strip(_BLANK).translate(_LEFT_OUT).partition("#")[0]
    match = _SCHEME.match(text)
    scheme = match[1].lower() if match else base.scheme if base else ""
    if scheme not in PORTS:
        raise FetchError("scheme refused")
    rest, mark, query_text = (text[match.end() :] if match else text).partition("?")
    query = quote(query_text, safe=QUERY_SAFE) if mark else None
    rest = rest.replace("\\", "/")
    slashes = len(rest) - len(rest.lstrip("/"))
    if slashes < 2 and base is not None and base.scheme == scheme:  # `http:a.jpg` is relative to a page under http
        if not rest:
            return replace(base, query=query if mark else base.query)
        folder = "" if slashes else base.path[: base.path.rindex("/") + 1]
        return replace(base, path=_path(folder + rest), query=query)
    if slashes > 2 and base is None:  # browsers take the path's first part for the host; in a catalogue the host got lost
        raise FetchError("malformed url")
    authority, _, path = rest[slashes:].partition("/")
    found = _HOST_AND_PORT.fullmatch(authority.rpartition("@")[2])
    if found is None:
        raise FetchError("malformed url")
    port = int(found[2].lstrip("0")[:6] or "0") if found[2] else PORTS[scheme]  # Python refuses thousands of digits
    if not 0 < port < 1 << 16:
        raise FetchError("malformed url")
    try:
        host, is_address = _host(found[1])
    except ValueError:  # UnicodeError and idna's errors, too
        raise FetchError("malformed url") from None
    return Url(scheme, host, port, _path("/" + path), query, found[1].strip("[]").lower(), is_address)


def _path(text: str) -> str:
    kept: list[str] = []
    parts = text.split("/")[1:]
    for number, part in enumerate(parts, 1):
        dots = part.lower().replace("%2e", ".")
        if dots == "..":
            del kept[-1:]
        if dots not in (".", ".."):
            kept.append(quote(part, safe=PATH_SAFE))
        elif number == len(parts):
            kept.append("")
    return "/" + "/".join(kept)


def _host(text: str) -> tuple[str, bool]:
    """(host, whether it is an address). ValueError: it is neither a name nor an address."""
    if text.startswith("["):
        if "%" in text:
            raise ValueError("an address within a zone")
        return ipaddress.IPv6Address(text[1:-1]).compressed, True
    name = idna.uts46_remap(unquote(text), False)
    # idna.encode would refuse emoji and the like, which browsers ask for
    labels = [part if part.isascii() else f"xn--{part.encode('punycode').decode()}" for part in name.split(".")]
    name = ".".join(labels)
    if not name.strip(".") or _NO_HOST_CHARACTER.search(name):
        raise ValueError("no host")
    numbers = name.removesuffix(".").split(".")
    if _NUMBER.fullmatch(numbers[-1]) is None:
        return name, False
    return str(ipaddress.IPv4Address(_ipv4(numbers))), True


def _ipv4(parts: list[str]) -> int:
    """One to four numbers, decimal, octal (0177) or hexadecimal (0x7f); the last fills what is left. Otherwise ValueError."""
    if len(parts) > 4 or any(_NUMBER.fullmatch(part) is None for part in parts):
        raise ValueError("no IPv4 address")
    bases = [16 if part.startswith("0x") else 8 if len(part) > 1 and part[0] == "0" else 10 for part in parts]
    values = [int(part.removeprefix("0x") or "0", base) for part, base in zip(parts, bases, strict=True)]
    if max(values[:-1], default=0) > 255 or values[-1] >= 256 ** (5 - len(parts)):
        raise ValueError("no IPv4 address")
    return sum(value << 8 * (3 - place) for place, value in enumerate(values[:-1])) + values[-1]
