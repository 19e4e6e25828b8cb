"""What one sample of a tar must be: its picture decodes, its caption is text, its json says what it is."""

from __future__ import annotations

import json
import os
import zlib
from hashlib import sha256
from pathlib import Path

import numpy as np

from data_pipeline.catalogue.captions import caption_hash, is_blank, lines_of
from data_pipeline.files import image_id
from data_pipeline.shards.tarwalk import Member

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
COMMON = ("jpg", "jpeg", "jfif", "jpe", "png", "webp", "gif")
EXPECTED = "JPEG, PNG, WebP or GIF"
TOO_LARGE = "member too large"
MAX_MEMBER_BYTES = 64 << 20
MAX_PIXELS = 25_000_000
MAX_TEXT_BYTES = 1 << 16
MAX_JSON_BYTES = 1 << 20
"""A camera's notes, as img2dataset copies them there, are often beyond 64 kB."""
MOST_CAPTIONS = 64
"""Of one picture; a text with more lines is one."""
MAX_PNG_SURPLUS = 1 << 16
"""Most bytes of a PNG that are not its picture. OpenCV, which decodes here and in training, makes 1,000 times as much of them."""


def phash(gray: np.ndarray) -> str:
    """64-bit perceptual hash of a uint8 (H, W) picture as 16 hex digits: signs of the low 8 x 8 DCT terms of its 32 x
    32 reduction against their median (as the imagehash package's phash)."""
    import cv2

    small = cv2.resize(gray, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8]
    bits = (low > np.median(low)).reshape(-1)
    return np.packbits(bits).tobytes().hex()


def check_sample(key: str, image: bytes | None, text: bytes | None, meta: bytes | None, mirror: str | None = None) -> dict:
    """Index fields of one sample (all but offsets), `keep` and `reason`; a broken sample is described, never raised.

    Args:
        mirror: name of a tar that somebody else made (`adopt`): what its json does not say is derived from the names.
    """
    import cv2

    from data_pipeline.pictures import FetchError, as_shown
    from data_pipeline.pictures.headers import bare_png, check_image, sniff

    row = {
        "key": key,
        "uid": "",
        "url": "",
        "image_id": "",
        "width": 0,
        "height": 0,
        "caption_chars": 0,
        "caption_hash": "",
        "phash": "",
        "keep": False,
        "reason": None,
    }
    if mirror is not None:
        meta = mirrored(key, meta, mirror, image, text)
    if image is None or text is None or meta is None:
        missing = [name for name, data in (("image", image), ("caption", text), ("json", meta)) if data is None]
        return row | {"reason": f"no {' and no '.join(missing)}"}
    try:
        record = json.loads(meta)
        uid, url = record["uid"], record["url"]
        if not isinstance(url, str) or not isinstance(uid, str) or len(uid) != 16 or set(uid) - set("0123456789abcdef"):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        return row | {"reason": "json without uid and url"}
    row |= {"uid": uid, "url": url, "image_id": record.get("image_id", "") if mirror is not None else image_id(url)}
    try:
        caption = text.decode("utf-8")
    except UnicodeDecodeError:
        return row | {"reason": "caption is not UTF-8"}
    row |= {"caption_chars": len(caption), "caption_hash": caption_hash(caption)}
    if is_blank(caption):
        return row | {"reason": "empty caption"}
    if not image:
        return row | {"reason": "empty picture"}
    try:
        header = check_image(image, MAX_PIXELS)
        if header.kind == "PNG" and len(image) - len(bare_png(image)) > MAX_PNG_SURPLUS:
            raise FetchError("png with too many texts")
        pixels = as_shown(image, MAX_PIXELS)
    except FetchError as error:
        other = error.reason == "unsupported format"
        return row | {"reason": f"{sniff(image[:16])} picture (expected {EXPECTED})" if other else error.reason}
    row["height"], row["width"] = pixels.shape[:2]
    row["phash"] = phash(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
    if mirror is None and (record.get("width"), record.get("height")) != (row["width"], row["height"]):
        return row | {"reason": "size differs from its json"}
    said, lines = record.get("captions", 1) if mirror is None else 1, lines_of(caption)
    if said not in (1, len(lines)):
        return row | {"reason": "captions differ from its json"}
    return row | {"keep": True} | ({} if said == 1 else a_caption_a_line(lines))


def a_caption_a_line(captions: list[str]) -> dict:
    """The index fields of a sample with several captions."""
    return {
        "captions": len(captions),
        "caption_chars": max(map(len, captions)),
        "caption_hash": " ".join(dict.fromkeys(filter(None, map(caption_hash, captions)))),
    }


def mirrored(key: str, meta: bytes | None, tar: str, image: bytes | None, text: bytes | None) -> bytes:
    """A mirror's json as verification expects it: its url if it has one, and ids of ours. Theirs repeat in every tar, and tars of
    other mirrors have the same names: what is not said is derived from what the sample holds."""
    url = json_of(meta).get("url")
    named = isinstance(url, str) and url.encode("utf-8", "replace").decode()  # half a surrogate pair fits into no index
    uid = sha256(f"{tar}/{key}\n".encode() + (image or b"") + (text or b"")).hexdigest()[:16]
    own = image_id(named) if named else sha256(image or b"").hexdigest()[:16]
    return json.dumps({"uid": uid, "url": named or f"wds:{tar}/{key}", "image_id": own}).encode()


def json_of(meta: bytes | None) -> dict:
    """A mirror's json; empty where there is none that can be read."""
    try:
        record = json.loads(meta or b"{}")
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def check_tar(path: Path, mirror: bool = False) -> list[dict]:
    """Rows of the index of one tar (manifest.INDEX_SCHEMA), in tar order. TarError when the tar must not be used."""
    return _check_mirror(path) if mirror else _check_own(path)


def _check_own(path: Path) -> list[dict]:
    from data_pipeline.shards.tarwalk import groups

    rows, keys, uids = [], set(), set()
    handle = os.open(path, os.O_RDONLY)
    try:
        for group in groups(path):
            images = [name for name in IMAGE_EXTENSIONS if name in group.members]
            members = [group.members.get(name) for name in (images[0] if len(images) == 1 else "", "txt", "json")]
            row = _row(handle, group.key, members)
            if group.key in keys and row["reason"] != TOO_LARGE:
                row |= {"keep": False, "reason": "duplicate key"}
            elif row["keep"] and row["uid"] in uids:
                row |= {"keep": False, "reason": "duplicate uid"}
            keys.add(group.key)
            uids.add(row["uid"])
            rows.append(row)
    finally:
        os.close(handle)
    return rows


def _check_mirror(path: Path) -> list[dict]:
    from data_pipeline.shards.mirror_tars import PICTURES, TEXTS, caption_of, mirror_groups, missing

    rows, lines = [], {}
    handle = os.open(path, os.O_RDONLY)
    try:
        for group in mirror_groups(path):
            pictures = [name for name in PICTURES if name in group.members]
            texts = [name for name in TEXTS if name in group.members]
            chosen = (pictures[0] if len(pictures) == 1 else "", texts[0] if texts else "", "json")
            image, text, meta = (group.members.get(name) for name in chosen)
            if meta is not None and (meta.is_link or meta.size > MAX_JSON_BYTES):
                meta = None
            row = _row(handle, group.key, [image, text, meta], path.stem)
            if image is None or text is None:
                record = json_of(os.pread(handle, meta.size, meta.offset)) if meta else {}
                row["reason"] = missing(group, image is None, text is None, caption_of(record))
            elif image.is_link or text.is_link:
                row |= {"keep": False, "reason": "picture or caption is a link inside the tar"}
            elif row["reason"] == "not an image" and pictures[0] not in COMMON:
                row["reason"] = f".{pictures[0]} picture (expected {EXPECTED})"
            if row["keep"]:
                captions = lines_of(os.pread(handle, text.size, text.offset).decode())
                if 1 < len(captions) <= MOST_CAPTIONS:
                    lines[len(rows)] = captions
            rows.append(row)
    finally:
        os.close(handle)
    _take_lines(rows, lines)
    return rows


def _take_lines(rows: list[dict], lines: dict[int, list[str]]) -> None:
    """Marks the captions of a tar as one a line, if half of its samples and more have several lines: where few have, a line break
    is one inside a caption."""
    if 2 * len(lines) < sum(row["keep"] for row in rows):
        return
    for number, captions in lines.items():
        rows[number] |= a_caption_a_line(captions)


def _row(handle: int, key: str, members: list[Member | None], mirror: str | None = None) -> dict:
    """The index row of one sample, read from an open tar: image, text and json."""
    limits = (MAX_MEMBER_BYTES, MAX_TEXT_BYTES, MAX_JSON_BYTES)
    too_large = any(member is not None and member.size > most for member, most in zip(members, limits, strict=True))
    image, text, meta = (
        None if member is None or too_large else os.pread(handle, member.size, member.offset) for member in members
    )
    row = check_sample(key, image, text, meta, mirror)
    if too_large:
        row |= {"keep": False, "reason": TOO_LARGE}
    for name, member in zip(("image", "text"), members, strict=False):
        row[f"{name}_offset"] = -1 if member is None else member.offset
        row[f"{name}_bytes"] = 0 if member is None else member.size
    row["crc32"] = zlib.crc32(text or b"", zlib.crc32(image or b""))
    return row
