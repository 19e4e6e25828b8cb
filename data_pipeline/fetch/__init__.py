"""From a URL to the bytes of its picture, whatever stands at the other end. The one room that speaks with the network.

In: a URL as a catalogue holds it. Out: `Body`, whose header was read, or a reason from a closed list; never an exception.

    image (redirects, retries, which answers count) -> urls (as browsers read them) -> names (addresses, checked) -> connection
    (pinned to them, within the clock of `limits`; urllib3) -> answer (heads as servers write them) -> body (bounded, unpacked)

`robots` reads refusals in headers, `room` bounds the memory that large bodies take together.
"""

import importlib

_FOUND_IN = {"Limits": "limits", "fetch_image": "image"}
__all__ = ["Limits", "fetch_image"]


def __getattr__(name: str):
    """urllib3 is imported by those who fetch, not by those who ask for help."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FOUND_IN[name]}"), name)
