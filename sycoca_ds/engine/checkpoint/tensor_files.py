"""Some of the tensors of a file that `torch.save` wrote, without a look at the others: what is read is verified, nothing else is.

A checkpoint's files hold AdamW's moments beside the weights, twice their size, and hashes of every block (seal.py). Nothing that a
file names is imported or called: not DeepSpeed, whose logger writes to stdout, and not what somebody else has put there.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data_pipeline.errors import one_line
from sycoca_ds.engine.checkpoint.seal import BLOCK, is_as_written


class Damaged(Exception):
    """A file is not what its seal says."""


class Extent(NamedTuple):
    """In place of a tensor: where it lies."""

    record: int
    """Where the header of its part of the file begins."""
    start: int
    """Place of its first byte behind that header."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class Wanted(NamedTuple):
    """Numbers that lie one behind the other in a file, and what they are to be read into."""

    record: int
    start: int
    """Place of the first byte, as an extent has it."""
    target: Tensor
    """1-D and contiguous, of the type that is stored, on the CPU."""


class Verified:
    """A file of a checkpoint, of which only what is as it was written is given out.

    Raises:
        Damaged: naming the file, at once or from `read`.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        """
        Args:
            facts: the seal's, of this file.
        """
        self.path, self.facts = path, facts
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != facts["bytes"] or ("blocks" not in facts and not is_as_written(path, facts)):
            raise self._damaged()
        self._known: tuple[int, bytes] = (-1, b"")
        self._behind = functools.cache(self._behind)

    def _damaged(self) -> Damaged:
        return Damaged(f"{self.path} is damaged (its size or sha256 is not what state.json says)")

    def _block(self, file: io.BufferedReader, number: int) -> bytes:
        if self._known[0] != number:
            file.seek(number * BLOCK)
            block = file.read(BLOCK)
            if "blocks" in self.facts and hashlib.sha256(block).hexdigest() != self.facts["blocks"][number]:
                raise self._damaged()
            self._known = number, block
        return self._known[1]

    def spans(self, start: int, count: int) -> Iterator[memoryview]:
        """The bytes of a part of the file, in pieces; no more than a block is in memory."""
        with open(self.path, "rb", buffering=0) as file:
            while count:
                block, place = self._block(file, start // BLOCK), start % BLOCK
                part = memoryview(block)[place : place + count]
                if not part:
                    raise self._damaged()
                yield part
                start, count = start + len(part), count - len(part)

    def read(self, wanted: Iterable[Wanted]) -> None:
        """Fills the targets; in the order of their places every block is read once."""
        for record, start, target in sorted(wanted, key=lambda one: one[:2]):
            found, at = target.view(torch.uint8).numpy(), 0
            for part in self.spans(self._behind(record) + start, len(found)):
                found[at : at + len(part)] = part
                at += len(part)

    def content(self) -> Any:
        """What `torch.save` was given, with an `Extent` in place of every tensor and a `StandIn` in place of all but numbers, texts
        and containers."""
        try:
            with zipfile.ZipFile(_Seekable(self)) as archive:  # the list of its records is its end
                records = {record.filename.split("/", 1)[1]: record for record in archive.infolist()}
            structure = records["data.pkl"]
            data = b"".join(self.spans(self._behind(structure.header_offset), structure.file_size))
            return _Extents(io.BytesIO(data), {name: record.header_offset for name, record in records.items()}).load()
        except (Damaged, OSError):
            raise
        except Exception as error:  # of what is no such file Python raises whatever its pieces lead to
            raise Damaged(f"{self.path}: not readable as what `torch.save` wrote of a run ({one_line(error)})") from None

    def _behind(self, record: int) -> int:
        """Where a record begins behind its header, which is filled up so that this is a multiple of 64."""
        header = b"".join(self.spans(record, 30))
        return record + 30 + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))


class _Seekable(io.RawIOBase):
    """A verified file for who reads it as a file."""

    def __init__(self, verified: Verified) -> None:
        super().__init__()
        self.verified, self.place = verified, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.verified.facts["bytes"]}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.verified.facts["bytes"] - self.place))
        data = b"".join(self.verified.spans(self.place, count))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


class StandIn:
    """In place of whatever else a file names, with what is done to it: takes everything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        return super().__new__(cls)

    def _nothing(self, *_: Any) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _nothing


class _Extents(pickle.Unpickler):
    """Reads the structure of a file, and runs nothing of it: a seal says that it is as it was written, not who wrote it."""

    def __init__(self, file: io.BytesIO, records: dict[str, int]) -> None:
        super().__init__(file)
        self.records = records

    def persistent_load(self, saved_id: tuple[Any, ...]) -> tuple[int, torch.dtype]:
        _, dtype, key, *_ = saved_id
        return self.records[f"data/{key}"], dtype

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        return KNOWN.get((module, name), StandIn)


def _extent(storage: tuple[int, torch.dtype], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Extent:
    record, dtype = storage
    if not torch.empty_strided(size, stride, device="meta").is_contiguous():
        raise ValueError(f"a tensor of shape {tuple(size)} with strides {tuple(stride)}: expected one that lies in one piece")
    return Extent(record, offset * dtype.itemsize, dtype, tuple(size))


STORAGES = {f"{kind}Storage": dtype for kind, dtype in {
    "Float": torch.float32, "BFloat16": torch.bfloat16, "Half": torch.float16, "Double": torch.float64, "Long": torch.int64,
    "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}.items()}  # fmt: skip
KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): _extent,
    ("torch._utils", "_rebuild_parameter"): lambda extent, *_: extent,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda rebuild, kind, arguments, state: rebuild(*arguments),
}
"""What a file names of which something comes: containers, and what makes tensors, here extents."""
