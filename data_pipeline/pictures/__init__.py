"""From a picture's bytes as a stranger sent them to pixels, or to the JPEG that is stored, in bounded memory.

In: bytes of any kind. Out: pixels (`decode`, `as_shown`), a stored JPEG (`PictureMaker`), or `FetchError` with one of
`headers.REASONS`.

    headers (what the bytes say, without a decoder) -> decoding, rare kinds in a bounded child (decode_apart) -> maker
"""

from data_pipeline.pictures.decoding import as_shown, decode
from data_pipeline.pictures.headers import FetchError, Header, read_header
from data_pipeline.pictures.maker import PictureMaker, Stored

__all__ = ["FetchError", "Header", "PictureMaker", "Stored", "as_shown", "decode", "read_header"]
