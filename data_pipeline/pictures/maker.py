"""From a picture's bytes as a stranger sent them to the JPEG that is stored: one at a time a process, in bounded memory.

Stands in for img2dataset's Resizer, whose ordinary results it gives bit by bit. That one makes 16 bits a channel white, leaves
pictures lying on their side, and takes 1.8 GB for 25 million pixels with opacity."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.pictures.decoding import decode, turn
from data_pipeline.pictures.headers import MAX_SIDE, FetchError, Header


@dataclass(frozen=True)
class Stored:
    """A picture as it is stored."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    """Before it was reduced, after it was turned."""
    original_height: int


@dataclass(frozen=True)
class PictureMaker:
    """Decodes, turns and reduces pictures and encodes them as JPEG. Takes up to 12 bytes a pixel while it does; img2dataset calls
    it from one thread."""

    image_size: int
    """Pictures with a longer short side are reduced to it, in proportion."""
    min_image_size: int
    """Pictures with a smaller short side are refused."""
    quality: int
    """JPEG's, 1 to 100."""
    max_pixels: int
    """For kinds whose header only their decoder reads."""

    def __call__(self, data: bytes | bytearray, header: Header) -> Stored:
        """Raises `FetchError` with one of headers.REASONS."""
        import cv2

        cv2.setNumThreads(1)
        pixels, (height, width), orientation = decode(data, header, self.max_pixels, self.image_size)
        short = min(height, width)
        if short < self.min_image_size:
            raise FetchError("image too small")
        if short > self.image_size:
            scale = self.image_size / short
            target = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
        if max(pixels.shape) > MAX_SIDE:
            raise FetchError("too many pixels")
        pixels = turn(pixels, orientation)
        if orientation > 4:
            height, width = width, height
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return Stored(jpeg.tobytes(), pixels.shape[1], pixels.shape[0], width, height)
