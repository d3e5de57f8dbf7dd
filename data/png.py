"""The PNGs of a shard, decoded together: most of the time for one of 32x32 is not spent in it.

A PNG holds rows of bytes that are compressed, and filtered: differences to what is left and above.
Here each is only inflated. Then all lie below each other in one picture, which Pillow takes to be
one PNG, so that it is called once for many.
"""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

Shape = tuple[int, int, int]
"""Channels (1 or 3), height and width."""
Rows = UInt8[np.ndarray, "images height bytes"]
"""Filtered rows of images: a byte for the filter, then pixels."""
AT_ONCE = 2**17  # bytes of rows in one picture; they stay in the processor's cache


def read_rows(data: bytes | memoryview, shape: Shape) -> UInt8[np.ndarray, "height bytes"]:
    """Return the filtered rows of an 8-bit PNG; one of another shape is not even inflated.

    Raises:
        ValueError: If it is anything else, or damaged.
    """
    channels, height, width = shape
    start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(
        ">2I2B", width, height, 8, {1: 0, 3: 2}[channels]
    )
    if data[: len(start)] != start:
        raise ValueError(f"an image other than an 8-bit PNG of {shape}")
    row = width * channels
    if (rows := _plain_rows(data, height * (1 + row))) is not None:
        return np.frombuffer(rows, np.uint8).reshape(height, 1 + row)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.size != (width, height):  # of a second header
                raise ValueError(f"a PNG of {picture.size}")
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, SyntaxError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged PNG ({str(error)[:100]})") from error
    return np.pad(pixels.reshape(height, row), ((0, 0), (1, 0)))  # filter 0: pixels as they are


def _plain_rows(data: bytes | memoryview, size: int) -> bytes | None:
    """Read a PNG like those that `encode` writes, faster than Pillow; None for any other.

    It consists of a header, which has been compared, pixels and an end, whose checksums are right.
    """
    at, pixels, kind = 8, [], b""
    try:
        while kind != b"IEND":
            length, kind = struct.unpack_from(">I4s", data, at)
            content = data[at + 4 : at + 8 + length]
            at += 12 + length
            known = kind in (b"IDAT", b"IEND") or (kind == b"IHDR" and at == 33)
            if at > len(data) or not known or zlib.crc32(content) != _number(data[at - 4 : at]):
                return None
            if kind == b"IDAT":
                pixels.append(content[4:])
        if at != len(data) or any(data[26:29]):  # other compression, filters or interlacing
            return None
        inflate = zlib.decompressobj()
        rows = inflate.decompress(b"".join(pixels), size + 1)  # to its end
    except (struct.error, zlib.error):
        return None
    return rows if len(rows) == size and inflate.eof and not inflate.unused_data else None


def _number(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "big")


def decode_rows(rows: Rows, shape: Shape) -> UInt8[np.ndarray, "images channels height width"]:
    """Return the images of filtered rows.

    Raises:
        ValueError: If there is no such filter.
    """
    channels, height, width = shape
    mode = "RGB" if channels == 3 else "L"
    images = np.empty((len(rows), height, width, channels), np.uint8)
    few = max(1, AT_ONCE // rows[0].nbytes)
    for at in range(0, len(rows), few):
        part = rows[at : at + few]
        # A blank row below each: what is above the first row of the next one counts as zeros.
        data = zlib.compress(np.pad(part, ((0, 0), (0, 1), (0, 0))).tobytes(), level=0)
        picture = Image.frombytes(mode, (width, len(part) * (height + 1)), data, "zip", mode)
        pixels = np.frombuffer(picture.tobytes(), np.uint8)
        images[at : at + few] = pixels.reshape(len(part), -1, width, channels)[:, :height]
    return images.transpose(0, 3, 1, 2)
