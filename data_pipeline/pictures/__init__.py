"""From a picture's bytes as a stranger sent them to pixels, or to the JPEG that is stored, in bounded memory.

In: bytes of any kind. Out: pixels (`decode`, `as_shown`), a stored JPEG (`PictureMaker`), or `FetchError` with one of
`headers.REASONS`.

    headers (what the bytes say, without a decoder) -> decoding, rare kinds in a bounded child (decode_apart) -> maker
"""

import importlib

_FOUND_IN = {
    **dict.fromkeys(("as_shown", "decode"), "decoding"),
    **dict.fromkeys(("FetchError", "Header", "read_header"), "headers"),
    **dict.fromkeys(("PictureMaker", "Stored"), "maker"),
}
__all__ = ["FetchError", "Header", "PictureMaker", "Stored", "as_shown", "decode", "read_header"]


def __getattr__(name: str):
    """numpy is imported by those who decode, not by those who ask for help."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_FOUND_IN[name]}"), name)
