"""A catalogue of every oddity that curation has a rule for, in any number of rows: what two engines must agree on."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

URLS = (
    "http://pictures{host}.example/{id}.jpg",
    "https://cdn{host}.example:443/a/{id}.png?w=1&h=2",
    "HTTP://PICTURES{host}.Example:80/{id}.jpg#part",
    "http://user:secret@pictures{host}.example./{id}.jpg",
    "https://b\u00fccher{host}.example/{id}/\u00fcber.jpg",
    "https://pictures{host}.example?id={id}",
    "http://pictures{host}.example",
    "http://blocked.example/{id}.jpg",
    "http://sub.blocked.example:8080/{id}.jpg",
    "http://notblocked.example/{id}.jpg",
    " \u00a0http://pictures{host}.example/{id}.jpg\t\r\n",
    "http://pictures{host}.example/{id} x.jpg",
    "http://pictures{host}.example/{id}\u2028.jpg",
    "http://pictures{host}.example/{id}.jpg\x00",
    "http://127.0.0.1/{id}.jpg",
    "http://127.0.0.1:8731/{id}.jpg",
    "http://10.0.0.{host}:8080/{id}.jpg",
    "http://[::1]/{id}.jpg",
    "http://[2606:4700::1111]/{id}.jpg",
    "http://0x7f.1/{id}.jpg",
    "http://8.8.8.8/{id}.jpg",
    "http://printer.local/{id}",
    "http://LOCALHOST:80/{id}",
    "http://\u0130stanbul{host}.example/{id}.jpg",
    "ftp://pictures.example/{id}.jpg",
    "file:///etc/passwd{id}",
    "javascript:alert({id})",
    "pictures.example/{id}.jpg",
    "http:///{id}.jpg",
    "http://a:b:c/{id}",
    "http://[broken/{id}",
    "",
    None,
)
CAPTIONS = (
    "a photograph of thing number {id} on a table",
    "thing {id}",
    "one of very few captions {few}",
    "Tom &amp; Jerry&#39;s no. {id}",
    "twice &amp;quot;quoted&amp;quot; {id}",
    "entities &nbsp;&#x1;&#0;&bogus; {id} &amp",
    "  blanks\t\tand\u00a0\u2003\u2028lines\r\n{id} ",
    "nul\x00 and \x85 and \u200b {id}",
    "\u732b\u3068\u72ac\u306e\u5199\u771f {id}",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e {id}",
    "e\u0301le\u0300ve \U0001f600\U0001f600 {id}",
    "'quoted' \"twice\" back\\slash {id}",
    "\u0130STANBUL \u00df {id}",
    "{id}",
    "02000",
    "IMG_{id}.JPG",
    "http://pictures.example/{id}.html",
    "www.pictures.example",
    "!!! *** --- {id}",
    "\U0001f600\U0001f601\U0001f602\U0001f603\U0001f604",
    "ab",
    "x" * 1001,
    "&nbsp;",
    "",
    None,
)
BLOCKED = ("blocked.example",)
ALLOWED = ("127.0.0.1:8731",)
EDGES = (0.28, 0.1, 0.5, 0.8, 0.45, 0.0, 1.0)


def write_odd_catalogue(folder: Path, rows: int, seed: int = 0, files: int = 4, odd: float = 0.3) -> None:
    """Writes `files` parquet files of `rows` rows in all: about `odd` of them are odd in some way, a fifth repeat others."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.array_split(np.arange(rows), files)):
        count = len(part)
        ids = rng.integers(0, max(1, int(rows * 0.8)), count)
        url_kind = np.where(rng.random(count) < odd, rng.integers(0, len(URLS), count), 0)
        text_kind = np.where(rng.random(count) < odd, rng.integers(0, len(CAPTIONS), count), 0)
        few = rng.integers(0, max(1, rows // 5000), count)

        def filled(texts, kinds, ids=ids, few=few):
            return [
                text and text.replace("{id}", str(n)).replace("{host}", str(n % 97)).replace("{few}", str(f))
                for text, n, f in zip((texts[kind] for kind in kinds), ids, few, strict=True)
            ]

        def some_null(values, kind, rng=rng, count=count):
            return pa.array(values, kind, mask=rng.random(count) < 0.05, from_pandas=False)

        def scores(high=1.0, rng=rng, count=count):
            values = np.where(rng.random(count) < odd / 3, rng.choice(EDGES, count), rng.uniform(0, high, count))
            return np.where(rng.random(count) < 0.02, np.nan, values)

        table = pa.table(
            {
                "URL": pa.array(filled(URLS, url_kind), pa.string()),
                "TEXT": pa.array(filled(CAPTIONS, text_kind), pa.string()),
                "WIDTH": some_null(rng.integers(40, 1000, count), pa.int32()),
                "HEIGHT": some_null(rng.uniform(40, 1000, count), pa.float64()),
                "similarity": some_null(0.2 + 0.2 * scores(), pa.float64()),
                "punsafe": some_null((0.55 * scores()).astype(np.float32), pa.float32()),
                "pwatermark": some_null([None if np.isnan(x) else f"{x:.3g}" for x in 0.9 * scores()], pa.string()),
                "aesthetic": some_null(10 * scores(), pa.float64()),
                "phash": some_null([f"{n * 2654435761 % (1 << 64):016x}" for n in (ids // 2).tolist()], pa.string()),
            }
        )
        pq.write_table(table, folder / f"part-{number:05d}.parquet")
