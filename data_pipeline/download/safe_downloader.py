"""img2dataset's Downloader with our fetch and our decoding inside. Importing this imports img2dataset, the lean way."""

from __future__ import annotations

import ctypes
import functools
import traceback
from dataclasses import dataclass

from data_pipeline.download.lean import without_the_unused
from data_pipeline.fetch.body import Body
from data_pipeline.fetch.image import fetch_image
from data_pipeline.fetch.limits import Limits
from data_pipeline.fetch.robots import forbidden
from data_pipeline.paths import read_local_paths_literally
from data_pipeline.pictures.headers import FetchError
from data_pipeline.pictures.maker import PictureMaker

with without_the_unused():
    from img2dataset import downloader as downloader_module
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import SuppressStdoutStderr

INTERNAL = "internal error"
"""The reason for what should not happen; download.log says more."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


@functools.cache
def give_memory_back() -> None:
    """Tells glibc to return large pieces to the system at once, and to keep few pools for threads: it would keep up to 64 MB in
    every thread's, 150 MB more at the peak of an attack. Smaller pieces stay: fetching pages anew costs a quarter of decoding."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return  # another C library, which has its own ways
    for name, value in ((M_MMAP_THRESHOLD, 8 << 20), (M_TRIM_THRESHOLD, 16 << 20), (M_ARENA_MAX, 2)):
        mallopt(name, value)


def bounded_download(row, timeout, user_agent_token, disallowed_header_directives, limits: Limits):
    """Stands in for img2dataset.downloader.download_image: (key, body or None, reason or None)."""
    key, url = row
    refuses = functools.partial(forbidden, robot=user_agent_token, directives=disallowed_header_directives or ())
    try:
        return key, *fetch_image(url, limits, refuses)
    except Exception:  # would end the whole shard, each time it is tried
        traceback.print_exc()
        return key, None, INTERNAL


@dataclass(frozen=True)
class BoundedResizer:
    """Stands in for img2dataset's Resizer: (bytes, width, height, original width, original height, None), or Nones and a reason."""

    make: PictureMaker

    def __call__(self, body: Body, blurring_bbox_list: None = None):
        try:
            with SuppressStdoutStderr():  # libraries in C complain there about damaged pictures
                made = self.make(body.data, body.header)
        except FetchError as error:
            return None, None, None, None, None, error.reason
        except Exception:  # img2dataset would count such a row nowhere
            traceback.print_exc()
            return None, None, None, None, None, INTERNAL
        return made.jpeg, made.width, made.height, made.original_width, made.original_height, None


class SafeDownloader(Downloader):
    """img2dataset's Downloader whose every request goes through `fetch`, every picture through `pictures.PictureMaker`.

    The object is pickled into each worker; the worker's module is patched when it is called there, so a worker without
    the patch cannot exist. Pictures keep their proportions and are only made smaller, whatever `resize_mode` says.
    """

    def __init__(self, *args, limits: Limits, **kwargs):
        super().__init__(*args, **kwargs)
        self.limits = limits
        theirs = self.resizer
        _, quality = theirs.encode_params
        self.resizer = BoundedResizer(PictureMaker(theirs.image_size, theirs.min_image_size, quality, limits.max_pixels))

    def __call__(self, row):
        give_memory_back()
        read_local_paths_literally()
        downloader_module.download_image = functools.partial(bounded_download, limits=self.limits)
        return super().__call__(row)
