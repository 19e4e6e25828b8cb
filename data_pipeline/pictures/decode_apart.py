"""Decoding in a process beside the worker, for rare kinds of pictures whose decoders take what they like.

Its memory is bounded by the kernel; that it is killed, hangs or crashes costs one picture. (A worker that crashes hangs img2dataset
for ever.) It lives on from picture to picture and ends with its parent."""

from __future__ import annotations

import atexit
import os
import resource
import struct
import subprocess
import sys
import threading
from typing import BinaryIO

import numpy as np

from data_pipeline.own_package import import_path
from data_pipeline.pictures.headers import APART, ORIENTATION, FetchError, check_size

SECONDS = 10.0
"""For one picture; then the decoder is killed."""
START_SECONDS = 30.0
"""To start the decoder, which imports numpy and Pillow."""
MEMORY_BYTES = 400 << 20
"""Of address space, beyond what the decoder has before its first picture."""
READY = b"ready\n"
ASK = struct.Struct("<QQ")
"""max_pixels, bytes that follow."""
REPLY = struct.Struct("<4I")
"""Height, width, channels, EXIF's orientation of the pixels that follow; height 0: width bytes of a reason follow."""


class _Decoder:
    """The process, started when it is first needed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None
        self._one_at_a_time = threading.Lock()

    def decode(self, data: bytes | bytearray, max_pixels: int) -> tuple[np.ndarray, int]:
        with self._one_at_a_time:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            timer = threading.Timer(SECONDS, self._process.kill)
            timer.start()
            try:
                self._process.stdin.write(ASK.pack(max_pixels, len(data)))
                self._process.stdin.write(data)
                self._process.stdin.flush()
                height, width, channels, orientation = REPLY.unpack(_read(self._process.stdout, REPLY.size))
                if not height:
                    raise FetchError(bytes(_read(self._process.stdout, width)).decode())
                if height * width > max_pixels or channels not in (1, 3):
                    raise EOFError  # it is no longer our program that speaks
                pixels = np.frombuffer(_read(self._process.stdout, height * width * channels), np.uint8)
                return pixels.reshape((height, width) if channels == 1 else (height, width, channels)), orientation
            except (OSError, EOFError):
                killed = not timer.is_alive()
                self.end()
                raise FetchError("decoder took too long" if killed else "damaged image") from None
            finally:
                timer.cancel()

    def _start(self) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", "from data_pipeline.pictures.decode_apart import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | import_path() | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        timer = threading.Timer(START_SECONDS, process.kill)
        timer.start()
        try:
            if bytes(_read(process.stdout, len(READY))) != READY:
                raise EOFError
        except EOFError:
            process.kill()
            process.wait()
            raise FetchError("decoder does not start") from None
        finally:
            timer.cancel()
        return process

    def end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.stdout.close()
            try:
                process.stdin.close()
            except OSError:
                pass  # what it did not read any more
            process.wait()


def _read(stream: BinaryIO, size: int) -> bytearray:
    """Exactly so many bytes. EOFError: the other end is gone."""
    data = bytearray(size)
    view, place = memoryview(data), 0
    while place < size:
        count = stream.readinto(view[place:])
        if not count:
            raise EOFError
        place += count
    return data


_decoder = _Decoder()
atexit.register(_decoder.end)


def decode_apart(data: bytes | bytearray, max_pixels: int) -> tuple[np.ndarray, int]:
    """(pixels as `pictures.flatten` gives them, EXIF's orientation).

    Raises:
        FetchError: with one of headers.REASONS.
    """
    return _decoder.decode(data, max_pixels)


def _decode_here(data: bytes | bytearray, max_pixels: int) -> tuple[np.ndarray, int]:
    import io
    import warnings

    from PIL import Image

    from data_pipeline.pictures.flatten import flatten

    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(data), formats=[kind for kind in APART if kind in Image.OPEN]) as picture:
        check_size(*picture.size, max_pixels)
        pixels = flatten(picture)
        orientation = picture.getexif().get(ORIENTATION, 1)  # only now: Pillow turns a TIFF itself when it loads it
        return pixels, orientation if orientation in range(1, 9) else 1


def main() -> None:
    """Serves its parent over standard input and output until that ends."""
    import cv2
    from PIL import Image, UnidentifiedImageError

    from data_pipeline.pictures.flatten import damage

    cv2.setNumThreads(1)
    Image.init()
    if "AVIF" in Image.OPEN:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # threads' stacks count as memory
    source, target = sys.stdin.buffer, sys.stdout.buffer
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES,) * 2)
    target.write(READY)
    target.flush()
    while True:
        try:
            max_pixels, size = ASK.unpack(_read(source, ASK.size))
        except EOFError:
            return
        try:
            pixels, orientation = _decode_here(_read(source, size), max_pixels)
            channels = 1 if pixels.ndim == 2 else pixels.shape[2]
            target.write(REPLY.pack(*pixels.shape[:2], channels, orientation))
            target.write(pixels.data)
        except UnidentifiedImageError:
            _refuse(target, "damaged image")
        except Exception as error:  # a decoder raises whatever damaged data leads it to
            _refuse(target, damage(error))
        target.flush()


def _refuse(target: BinaryIO, reason: str) -> None:
    target.write(REPLY.pack(0, len(reason), 0, 0))
    target.write(reason.encode())
