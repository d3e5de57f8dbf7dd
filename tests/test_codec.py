"""Pairs as members of a tar: encoded and decoded, and readable by others."""

import io
import itertools
import struct
import tarfile
import zlib
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from data.codec import decode, encode
from data.manifest import read_record, tar_path
from data.pairs import Pairs
from data.writer import write_shards
from get.noise import draw

from .problems import Softsign
from .shards import manifest_of


@pytest.mark.parametrize("pack", [1, 3])
@pytest.mark.parametrize("labels", [None, [0, 999, 1, 7]])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [("png", np.uint8, 0.5 / 127.5), ("npy", np.float16, 2**-11), ("npy32", np.float32, 0)],
)
def test_pairs_survive_encoding(form, dtype, tolerance, channels, labels, pack):
    noise, images = torch.randn(4, channels, 4, 5), torch.rand(4, channels, 4, 5) * 2 - 1
    classes = None if labels is None else torch.tensor(labels)
    samples = list(encode(7, Pairs(noise, images, classes), form, pack))
    keys = ["000000007", "000000008", "000000009", "000000010"][::pack]
    assert [sample["__key__"] for sample in samples] == keys
    shape: dict[str, Any] = {"image_shape": (channels, 4, 5), "num_classes": labels and 1000}
    manifest = manifest_of(Softsign(), form, pack=pack, teacher_batch_size=12, pairs_per_shard=4)
    decoded = decode(samples, 7, replace(manifest, **shape))
    stored = decoded.images.numpy()
    assert decoded.noise.dtype == torch.float32
    assert torch.equal(decoded.noise, noise)
    assert stored.dtype == dtype
    restored = stored.astype(np.float32)
    restored = restored / 127.5 - 1 if form == "png" else restored
    np.testing.assert_allclose(restored, images.numpy(), rtol=0, atol=tolerance + 1e-6)
    assert (None if decoded.labels is None else decoded.labels.tolist()) == labels


def test_an_object_array_is_refused_and_not_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "sprung",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap()], dtype=object), allow_pickle=True)
    zeros = torch.zeros(1, 1, 2, 2)
    (sample,) = encode(0, Pairs(zeros, zeros, None), "npy32")
    manifest = manifest_of(Softsign(num_classes=None), pairs_per_shard=1)
    manifest = replace(manifest, image_shape=(1, 2, 2))
    assert len(decode([sample], 0, manifest)) == 1
    for member in ("latent.npy", "image.npy"):
        with pytest.raises(ValueError, match=r"an array of .*'descr': '\|O'"):
            decode([sample | {member: buffer.getvalue()}], 0, manifest)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it open
@pytest.mark.parametrize(("form", "image"), [("png", "image.png"), ("npy32", "image.npy")])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_any_webdataset_reader_and_tar_can_read_a_shard(tmp_path, form, image, num_classes):
    teacher = Softsign(channels=3, num_classes=num_classes)
    manifest = manifest_of(teacher, form)
    (record,) = write_shards(tmp_path, [2], teacher, manifest)
    path = tar_path(tmp_path, 2)
    keys = {"latent.npy", image} | ({"cls"} if num_classes else set())
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert set(names) == {f"{i:09d}.{key}" for i in range(12, 18) for key in keys}
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(12, 18)]
    assert all(keys <= sample.keys() for sample in samples)
    noise, labels = draw(0, range(12, 18), (3, 4, 4), num_classes)
    stored = decode(samples, 12, manifest)
    assert torch.equal(stored.noise, noise)
    tolerance = 0.5 / 127.5 + 1e-6 if form == "png" else 0
    images = teacher(noise, labels)
    torch.testing.assert_close(stored.as_floats().images, images, rtol=0, atol=tolerance)
    theirs, ours = (None if x is None else x.tolist() for x in (labels, stored.labels))
    assert ours == theirs
    data = path.read_bytes()
    assert (record.count, record.first_index, record.bytes) == (6, 12, len(data))
    assert record.sha256 == sha256(data).hexdigest()
    assert read_record(tmp_path, 2) == record


ZEROS = torch.zeros(2, 1, 2, 2)


def npy(array: Tensor | np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"latent.npy": torch.zeros(2, 1, 2, 3)}, r"shape': \(2, 1, 2, 3\).* instead of"),
        ({"latent.npy": torch.zeros(2, 1, 2)}, r"shape': \(2, 1, 2\), .* instead of"),
        ({"latent.npy": ZEROS.double()}, "descr': '<f8'.* instead of .*<f4"),
        ({"latent.npy": np.zeros((2, 1, 2, 2), ">f4")}, "descr': '>f4'"),
        ({"latent.npy": ZEROS / 0}, "not finite"),
        ({"image.npy": ZEROS.half()}, "descr': '<f2'"),
        ({"image.npy": ZEROS + torch.inf}, "not finite"),
        ({"cls.npy": torch.zeros(3).long()}, r"shape': \(3,\)"),
        ({"cls.npy": torch.zeros(2).int()}, "descr': '<i4'"),
        ({"cls.npy": torch.tensor([0, 10])}, "labels outside 0 to 9"),
        ({"cls.npy": torch.tensor([-1, 0])}, "labels outside 0 to 9"),
        ({"more.npy": ZEROS}, "members cls.npy, image.npy, latent.npy, more.npy of a pair"),
    ],
)
def test_members_that_are_not_what_the_manifest_says_are_refused(changes, shown):
    (sample,) = encode(0, Pairs(ZEROS, ZEROS, torch.zeros(2).long()), "npy32", pack=2)
    manifest = manifest_of(Softsign(), pack=2, pairs_per_shard=2)
    manifest = replace(manifest, image_shape=(1, 2, 2))
    assert len(decode([sample], 0, manifest)) == 2
    others: list[dict[str, Any]] = [
        *({"pairs_per_shard": 3}, {"num_classes": None}, {"image_format": "npy"}),
    ]
    for wrong in others:
        with pytest.raises(ValueError, match=r"pairs|members|array"):
            decode([sample], 0, replace(manifest, **wrong))
    for first in (1, 2):
        with pytest.raises(ValueError, match=f"pair '000000000' where 00000000{first} should be"):
            decode([sample], first, manifest)
    with pytest.raises(ValueError, match=shown):
        decode([sample | {k: npy(v) for k, v in changes.items()}], 0, manifest)


def png(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="png")
    return buffer.getvalue()


def resized(data: bytes, side: int) -> bytes:
    """Let the header of a PNG say another size, its checksum made to fit."""
    header = data[12:16] + struct.pack(">2I", side, side) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


@pytest.mark.parametrize(
    "image",
    [
        *(png(mode, (4, 4)) for mode in ("P", "RGBA", "1", "I;16", "L")),
        *(png("RGB", (4, 5)), b"", b"GIF89a"),
        *(resized(png("RGB", (4, 4)), side) for side in (60_000, 2**31)),
        *(png("RGB", (4, 4))[:n] for n in (20, 33, 45)),
        png("RGB", (4, 4))[:33] + resized(png("RGB", (4, 4)), 9000)[8:],  # two headers
    ],
    ids=itertools.count(),
)
def test_images_other_than_an_eight_bit_png_of_the_right_size_are_refused(image: bytes) -> None:
    zeros = torch.zeros(1, 3, 4, 4)
    manifest = manifest_of(Softsign(channels=3, num_classes=None), "png", pairs_per_shard=1)
    (sample,) = encode(0, Pairs(zeros, zeros, None), "png")
    assert len(decode([sample | {"image.png": png("RGB", (4, 4))}], 0, manifest)) == 1
    with pytest.raises(ValueError, match="PNG"):
        decode([sample | {"image.png": image}], 0, manifest)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_as_we_write_it_and_others_of_the_same_pixels_are_read_alike(channels: int) -> None:
    manifest = manifest_of(Softsign(channels=channels, num_classes=None), "png", pairs_per_shard=1)
    noise = torch.zeros(1, channels, 4, 4)
    for seed in range(20):
        images = torch.rand(noise.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        sample: dict[str, Any] = next(encode(0, Pairs(noise, images, None), "png"))
        pixels = decode([sample], 0, manifest).images
        assert (pixels.float() / 127.5 - 1 - images).abs().max() <= 0.5 / 127.5 + 1e-6
        chunk = PngInfo()
        chunk.add_text("by", "another program")
        with Image.open(io.BytesIO(sample["image.png"])) as picture:
            picture.save(other := io.BytesIO(), "png", pnginfo=chunk, compress_level=0)
        read = decode([sample | {"image.png": other.getvalue()}], 0, manifest)
        assert torch.equal(read.images, pixels)


def test_a_png_with_a_byte_changed_anywhere_is_refused_or_has_the_same_pixels() -> None:
    manifest = manifest_of(Softsign(channels=3, num_classes=None), "png", pairs_per_shard=1)
    images = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    noise = torch.zeros_like(images)
    sample: dict[str, Any] = next(encode(0, Pairs(noise, images, None), "png"))
    pixels, whole = decode([sample], 0, manifest).images, sample["image.png"]
    refused = 0
    for at, byte in enumerate(whole):
        changed = whole[:at] + bytes([byte ^ 1]) + whole[at + 1 :]
        try:
            read = decode([sample | {"image.png": changed}], 0, manifest)
        except ValueError:
            refused += 1
        else:
            assert torch.equal(read.images, pixels)
    assert refused > len(whole) // 2
