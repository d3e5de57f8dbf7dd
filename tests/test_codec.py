"""Pairs as members of a tar: encoded and decoded, and readable by others."""

import io
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

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
    decoded = decode(samples, 4)
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
    for member in ("latent.npy", "image.npy"):
        with pytest.raises(ValueError, match="an array of object"):
            decode([sample | {member: buffer.getvalue()}], 1)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it open
@pytest.mark.parametrize(("form", "image"), [("png", "image.png"), ("npy32", "image.npy")])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_any_webdataset_reader_and_tar_can_read_a_shard(tmp_path, form, image, num_classes):
    teacher = Softsign(channels=3, num_classes=num_classes)
    (record,) = write_shards(tmp_path, [2], teacher, manifest_of(teacher, form))
    path = tar_path(tmp_path, 2)
    keys = {"latent.npy", image} | ({"cls"} if num_classes else set())
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert set(names) == {f"{i:09d}.{key}" for i in range(12, 18) for key in keys}
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(12, 18)]
    assert all(keys <= sample.keys() for sample in samples)
    noise, labels = draw(0, range(12, 18), (3, 4, 4), num_classes)
    stored = decode(samples, 6)
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


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"latent.npy": torch.zeros(2, 1, 2, 3)}, r"noise of \(2, 1, 2, 3\) and images of"),
        ({"latent.npy": torch.zeros(2, 1, 2)}, r"noise of \(1, 2, 1, 2\) and images of"),
        ({"cls.npy": torch.zeros(3).long()}, "3 pairs"),
    ],
)
def test_members_that_do_not_fit_together_are_refused(changes, shown):
    images = torch.zeros(2, 1, 2, 2)
    (sample,) = encode(0, Pairs(images, images, torch.zeros(2).long()), "npy32", pack=2)
    assert len(decode([sample], 2)) == 2
    with pytest.raises(ValueError, match="2 pairs"):
        decode([sample], 3)
    for name, array in changes.items():
        buffer = io.BytesIO()
        np.save(buffer, array.numpy())
        sample[name] = buffer.getvalue()
    with pytest.raises(ValueError, match=shown):
        decode([sample], 2)
