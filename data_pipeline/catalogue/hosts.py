"""Which addresses may be fetched from. One owner of that fact: curation (on the text of a URL) and the fetch (on every
resolved address of every hop) ask here."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from pathlib import Path

from data_pipeline.errors import UserError

LOCAL_NAMES = ("localhost", "local", "localdomain", "internal", "home.arpa")
MOST_BLOCKED = 10_000
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public_address(text: str) -> bool:
    """Whether an IP literal is a global unicast address. Addresses that carry an IPv4 one inside (mapped, 6to4, Teredo,
    NAT64) are judged by what they carry; text that is no address gives False."""
    try:
        address = ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is None and address.teredo is not None:
            inside = address.teredo[1]
        if inside is None and address in NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inside is not None:
            address = inside
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_public_host(host: str) -> bool:
    """Whether the host of a URL, as written, may be public. Names pass (their addresses are checked when they are
    resolved); IP literals in any spelling a resolver accepts (`127.1`, `0x7f000001`, `2130706433`) are judged by
    value."""
    host = host.strip().strip("[]").rstrip(".").lower()
    if not host or host in LOCAL_NAMES or host.endswith(tuple(f".{name}" for name in LOCAL_NAMES)):
        return False
    if ":" in host:
        return is_public_address(host)
    if host.replace(".", "").isdigit() or any(part.startswith("0x") for part in host.split(".")):
        try:
            return is_public_address(socket.inet_ntoa(socket.inet_aton(host)))
        except (OSError, UnicodeError):
            return False
    return True


def parse_allowed_hosts(values: Iterable[str]) -> frozenset[str]:
    """`host:port` texts as a set, lower case. UserError for one without a port."""
    allowed = set()
    for value in values:
        host, _, port = value.strip().lower().rpartition(":")
        if not host or not port.isdigit():
            raise UserError(f"--allow-host {value!r}: expected HOST:PORT, for example 127.0.0.1:8731")
        allowed.add(f"{host}:{int(port)}")
    return frozenset(allowed)


def parse_blocked_hosts(values: Iterable[str]) -> tuple[str, ...]:
    """Host names, lower case, sorted; `@FILE` stands for those in a file, one a line, `#` begins a comment. UserError for a file
    that cannot be read and for what is no host name."""
    hosts = set()
    for value in values:
        lines = [value]
        if value.startswith("@"):
            try:
                lines = [line.split("#")[0] for line in Path(value[1:]).read_text(encoding="utf-8").splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--block-host {value}: cannot be read ({error})") from None
        for line in filter(None, map(str.strip, lines)):
            host = line.lower().strip(".")
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", host):
                raise UserError(f"--block-host {value}: {line!r} is no host name; expected one like example.org")
            hosts.add(host)
    if len(hosts) > MOST_BLOCKED:
        raise UserError(f"--block-host: {len(hosts)} hosts; expected at most {MOST_BLOCKED}: they become one regular expression")
    return tuple(sorted(hosts))
