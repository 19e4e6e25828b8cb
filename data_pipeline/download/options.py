"""The options of a download: what `download` and `build` share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from data_pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DownloadOptions:
    """How to download."""

    image_size: int = 288
    """Pictures with a longer short side are reduced to it, sides in proportion, never padded. 1.15 to 1.3 times the
    training size leaves room for crops."""
    min_image_size: int = 16
    """Pictures whose short side is smaller than this once downloaded are refused."""
    processes: int = max(1, os.cpu_count() or 1)
    """Downloading processes."""
    threads: int = 32
    """Connections per process."""
    timeout: float = 10.0
    """Seconds for one picture, all in all: names, redirects, retries, body."""
    retries: int = 1
    """How often a passing failure is tried again, within the timeout."""
    max_bytes: int = 32 << 20
    """Most bytes of one picture."""
    max_pixels: int = 25_000_000
    """Most pixels of one picture by its header, checked before it is decoded. A process takes up to 12 bytes a pixel, with 64 MiB
    for large bodies and 1 MiB a thread: under 512 MB."""
    shard_size: int = 10_000
    """Rows per tar."""
    min_success: float = 0.2
    """A shard (of 20 rows and more) of which a smaller share arrives was hit by an outage: it is not done, but downloaded again. 0
    takes what comes."""
    stall: float = 90.0
    """Seconds without a new byte after which the download is killed and resumed; at least three timeouts."""
    attempts: int = 3
    """Starts without a single new shard between them, after which we give up."""
    patience: float = 1800.0
    """Seconds for which we try on, with pauses, before we give up while nothing can be reached or arrives."""
    distributor: Literal["processes", "pyspark"] = "processes"
    """Who runs the downloaders: processes here, or Spark's executors; those need this data set folder and img2dataset, too."""
    spark_master: str | None = None
    """Spark's master, for example local[8] or spark://head:7077; not given: what spark-submit or Spark's own settings say."""
    proxy: Literal["environment", "none"] | None = None
    """Whether to go through the proxies that http_proxy, https_proxy, all_proxy and no_proxy name. Behind a proxy private addresses
    can be refused only where they stand in the URL itself, so that it must be asked for; not given: an error if there are any."""
    user_agent_token: str = "sycoca-ds"
    """Name of the robot sent to servers; also the name under which robots directives may address it."""
    allow_host: tuple[str, ...] = ()
    """HOST:PORT that may be fetched from although it is private, for example 127.0.0.1:8731."""


def chosen_proxies(choice: str | None) -> dict[str, str]:
    """`Limits.proxies` for --proxy. UserError: the environment names a proxy and nothing was chosen, or one we cannot speak to."""
    from urllib.request import getproxies_environment  # with http and email, which asking for help need not wait for

    named = getproxies_environment()
    ways = sorted(name for name in ("http", "https", "all") if named.get(name))
    if choice == "none" or not ways:
        return {}
    variables = ", ".join(f"{name}_proxy" for name in ways)
    if choice is None:
        raise UserError(
            f"{variables}: the environment names a proxy; expected --proxy environment (go through it; names of private hosts "
            "behind it can then not be refused) or --proxy none (go past it)"
        )
    from data_pipeline.fetch.connection import read_proxy

    if named.get("http") and named.get("https"):
        ways = ["http", "https"]  # all_proxy, often a socks5:// beside them, is then never asked
    for name in ways:
        try:
            read_proxy(named[name])
        except ValueError:  # the value may hold a password
            raise UserError(f"{name}_proxy: no proxy that can be used; expected http://HOST:PORT, or --proxy none") from None
    return {name: named[name] for name in (*ways, "no") if named.get(name)}
