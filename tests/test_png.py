"""The PNGs of a shard are decoded together, each to what Pillow reads of it alone."""

import io
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from data.png import decode_rows, read_rows

SIDE = 6


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png(channels: int, pixels: bytes) -> bytes:
    """Return a PNG that holds what is compressed in `pixels`."""
    header = struct.pack(">2I5B", SIDE, SIDE, 8, {1: 0, 3: 2}[channels], 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def random_rows(rng: random.Random, channels: int) -> bytes:
    """Return filtered rows of an image, every filter among them."""
    filters = [*range(5), rng.randrange(5)]
    rng.shuffle(filters)
    return b"".join(bytes([kind]) + rng.randbytes(SIDE * channels) for kind in filters)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_pngs_of_all_filters_are_what_pillow_reads_of_each(channels, count, monkeypatch):
    monkeypatch.setattr("data.png.AT_ONCE", 1000)  # several pictures, the last of fewer images
    rng, shape = random.Random(count), (channels, SIDE, SIDE)
    pngs = [png(channels, zlib.compress(random_rows(rng, channels))) for _ in range(count)]
    images = decode_rows(np.stack([read_rows(data, shape) for data in pngs]), shape)
    alone = [np.array(Image.open(io.BytesIO(data))).reshape(SIDE, SIDE, -1) for data in pngs]
    np.testing.assert_array_equal(images.transpose(0, 2, 3, 1), alone)


def test_pixels_in_several_chunks_and_beside_others_are_read_alike():
    pixels = zlib.compress(random_rows(random.Random(0), 3))
    whole = png(3, pixels)
    halves = whole[:33] + chunk(b"IDAT", pixels[:9]) + chunk(b"IDAT", pixels[9:]) + whole[-12:]
    beside = whole[:33] + chunk(b"tEXt", b"by\0others") + whole[33:]
    shape = (3, SIDE, SIDE)
    rows = [read_rows(data, shape) for data in (whole, halves, beside)]
    first, *others = decode_rows(np.stack(rows), shape)
    for other in others:
        np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: zlib.compress(b"\x05" + rows[1:]),  # no such filter
        lambda rows: zlib.compress(rows[:-1]),
        lambda rows: zlib.compress(rows)[:-6],
        lambda rows: b"\0" + zlib.compress(rows),
    ],
    ids=["filter", "rows", "cut", "no zlib"],
)
def test_pixels_that_no_png_can_have_are_refused(change: Callable[[bytes], bytes]):
    data, shape = png(3, change(random_rows(random.Random(0), 3))), (3, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"PNG|image data"):
        decode_rows(read_rows(data, shape)[None], shape)


def test_pixels_beyond_the_last_row_are_not_inflated():
    bomb = zlib.compressobj(1)
    pixels = b"".join([*(bomb.compress(bytes(2**20)) for _ in range(8)), bomb.flush()])
    data, shape = png(3, pixels), (3, SIDE, SIDE)
    tracemalloc.start()
    images = decode_rows(read_rows(data, shape)[None], shape)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert not images.any()
