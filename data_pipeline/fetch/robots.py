"""Whether an answer's headers forbid the use of its picture."""

from __future__ import annotations

from collections.abc import Collection
from email.message import Message
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urllib3 import HTTPHeaderDict

VALUED = ("max-snippet", "max-image-preview", "max-video-preview", "unavailable_after")
"""Directives that are followed by a colon and a value, as a robot's name is followed by its directives."""
ALSO = {"none": ("noindex", "nofollow")}


def forbidden(headers: Message | HTTPHeaderDict, robot: str | None, directives: Collection[str]) -> bool:
    """Whether any `X-Robots-Tag` holds one of the directives for everybody or for us, or `TDM-Reservation` is 1.

    Args:
        robot: our name as robots directives may use it, lower case.
        directives: those to be heeded, lower case. None of them: `X-Robots-Tag` is not looked at.

    A name before a colon is whom the directives behind it are for, up to the next name in the same header: `otherbot: noai,
    sycoca-ds: noindex`. img2dataset's own reader takes the first word before a colon for the name of everything, `max-snippet` too.
    """
    if any(value.strip() == "1" for value in headers.get_all("TDM-Reservation", [])):
        return True
    for value in headers.get_all("X-Robots-Tag", []):
        ours = True
        for item in value.lower().split(","):
            name, colon, directive = (part.strip() for part in item.rpartition(":"))
            if colon and name.split(":")[0].strip() in VALUED:
                continue
            if colon:
                ours = name in ("*", robot)
            if ours and any(word in directives for word in ALSO.get(directive, (directive,))):
                return True
    return False
