"""What one sample of a tar must be: its picture decodes, its caption is text, its json says what it is."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np

from data_pipeline.catalogue.captions import caption_hash
from data_pipeline.files import image_id, sha256_text

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_MEMBER_BYTES = 64 << 20
MAX_PIXELS = 25_000_000
MAX_TEXT_BYTES = 1 << 16
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

    from data_pipeline.pictures.headers import FetchError, bare_png, check_image

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
        meta = mirrored(key, meta, mirror)
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
    row |= {"uid": uid, "url": url, "image_id": image_id(url)}
    try:
        caption = text.decode("utf-8")
    except UnicodeDecodeError:
        return row | {"reason": "caption is not UTF-8"}
    row |= {"caption_chars": len(caption), "caption_hash": caption_hash(caption)}
    if not caption.strip():
        return row | {"reason": "empty caption"}
    try:
        header = check_image(image, MAX_PIXELS)
        if header.kind == "PNG" and len(image) - len(bare_png(image)) > MAX_PNG_SURPLUS:
            raise FetchError("png with too many texts")
    except FetchError as error:
        return row | {"reason": error.reason}
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        pixels = None
    if pixels is None:
        return row | {"reason": "image cannot be decoded"}
    row["height"], row["width"] = pixels.shape[:2]
    row["phash"] = phash(cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY))
    if mirror is None and (record.get("width"), record.get("height")) != (row["width"], row["height"]):
        return row | {"reason": "size differs from its json"}
    return row | {"keep": True}


def mirrored(key: str, meta: bytes | None, tar: str) -> bytes:
    """A mirror's json as verification expects it: its url if it has one, and a uid of ours, since theirs repeat in every tar."""
    try:
        record = json.loads(meta or b"{}")
        url = record.get("url")
    except (ValueError, AttributeError, RecursionError):
        url = None
    if not isinstance(url, str) or not url:
        url = f"wds:{tar}/{key}"
    return json.dumps({"uid": sha256_text(f"{tar}/{key}")[:16], "url": url}).encode()


def check_tar(path: Path, mirror: bool = False) -> list[dict]:
    """Rows of the index of one tar (manifest.INDEX_SCHEMA), in tar order. TarError when the tar must not be used."""
    from data_pipeline.shards.tarwalk import groups

    rows, keys, uids = [], set(), set()
    handle = os.open(path, os.O_RDONLY)
    try:
        for group in groups(path):
            images = [name for name in IMAGE_EXTENSIONS if name in group.members]
            members = [group.members.get(name) for name in (images[0] if len(images) == 1 else "", "txt", "json")]
            too_big = [
                member
                for member, most in zip(members, (MAX_MEMBER_BYTES, MAX_TEXT_BYTES, MAX_TEXT_BYTES), strict=True)
                if member is not None and member.size > most
            ]
            image, text, meta = [
                None if member is None or too_big else os.pread(handle, member.size, member.offset) for member in members
            ]
            row = check_sample(group.key, image, text, meta, path.stem if mirror else None)
            if too_big:
                row |= {"keep": False, "reason": "member too large"}
            elif group.key in keys:
                row |= {"keep": False, "reason": "duplicate key"}
            elif row["keep"] and row["uid"] in uids:
                row |= {"keep": False, "reason": "duplicate uid"}
            keys.add(group.key)
            uids.add(row["uid"])
            for name, member in zip(("image", "text"), members, strict=False):
                row[f"{name}_offset"] = -1 if member is None else member.offset
                row[f"{name}_bytes"] = 0 if member is None else member.size
            row["crc32"] = zlib.crc32(text or b"", zlib.crc32(image or b""))
            rows.append(row)
    finally:
        os.close(handle)
    return rows
