"""img2dataset's Downloader with our fetch inside. Importing this imports img2dataset (2.5 s)."""

from __future__ import annotations

import functools
import io

from img2dataset import downloader as downloader_module
from img2dataset.downloader import Downloader
from PIL import Image

from data_pipeline.fetch import Limits, fetch_image


def bounded_download(row, timeout, user_agent_token, disallowed_header_directives, limits: Limits):
    """Stands in for img2dataset.downloader.download_image: (key, stream or None, reason or None)."""
    key, url = row

    def refuses(headers) -> bool:
        if headers.get("tdm-reservation", "").strip() == "1":
            return True
        return bool(disallowed_header_directives) and downloader_module.is_disallowed(
            headers, user_agent_token, disallowed_header_directives
        )

    data, reason = fetch_image(url, limits, refuses)
    return key, None if data is None else io.BytesIO(data), reason


class SafeDownloader(Downloader):
    """img2dataset's Downloader whose every request goes through data_pipeline.fetch.

    The object is pickled into each worker; the worker's module is patched when it is called there, so a worker without
    the patch cannot exist.
    """

    def __init__(self, *args, limits: Limits, **kwargs):
        super().__init__(*args, **kwargs)
        self.limits = limits

    def __call__(self, row):
        Image.MAX_IMAGE_PIXELS = None  # fetch.check_image owns this bound, and names it
        downloader_module.download_image = functools.partial(bounded_download, limits=self.limits)
        return super().__call__(row)
