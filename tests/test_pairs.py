"""Pairs on disk: the contract and its writer."""

import io
import multiprocessing
import os
import signal
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from torch import Tensor

from data.codec import decode, encode
from data.manifest import (
    ImageFormat,
    Manifest,
    count_shards,
    open_data_set,
    read_manifest,
    read_record,
    record_path,
    tar_path,
)
from data.pairs import Pairs
from data.writer import describe, write_shard
from get.errors import InputError
from get.noise import draw

from .problems import Softsign


class Diverging(Softsign):
    """A teacher that fails on one image of the second batch."""

    def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        images = super().__call__(noise, labels)
        return torch.where(noise == draw(0, [5], self.image_shape)[0], torch.nan, images)


PAIRS = 6  # a shard; the teacher makes 4 and 2


def manifest_of(teacher: Softsign, form: ImageFormat = "npy32") -> Manifest:
    return describe(teacher, seed=0, teacher_batch_size=4, pairs_per_shard=PAIRS, image_format=form)


MANIFEST = manifest_of(Softsign())


def write(folder: Path, shards: list[int]) -> dict[str, bytes]:
    """Write shards in this order and return what the folder then holds."""
    open_data_set(folder, MANIFEST)
    for shard in shards:
        write_shard(folder, shard, Softsign(), MANIFEST)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.iterdir()):
        with suppress(FileNotFoundError):  # another writer's temporary file
            files[path.name] = path.read_bytes()
    return files


@pytest.mark.parametrize("pack", [1, 3])
@pytest.mark.parametrize("labels", [None, [0, 999, 1, 7]])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("form", "dtype", "tolerance"),
    [("png", np.uint8, 0.5 / 127.5), ("npy", np.float16, 2**-11), ("npy32", np.float32, 0)],
)
def test_pairs_survive_encoding(
    form: ImageFormat,
    dtype: type,
    tolerance: float,
    channels: int,
    labels: list[int] | None,
    pack: int,
) -> None:
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


def test_png_is_refused_for_latents_of_four_channels() -> None:
    with pytest.raises(InputError, match="expected 1 or 3 channels for image_format png, got 4"):
        manifest_of(Softsign(channels=4), "png")


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
@pytest.mark.parametrize(("form", "image"), [("png", "image.png"), ("npy", "image.npy")])
@pytest.mark.parametrize("num_classes", [None, 10])
def test_any_webdataset_reader_and_tar_can_read_a_shard(
    tmp_path: Path, form: ImageFormat, image: str, num_classes: int | None
) -> None:
    teacher = Softsign(num_classes=num_classes)
    manifest = manifest_of(teacher, form)
    record = write_shard(tmp_path, 2, teacher, manifest)
    path = tar_path(tmp_path, 2)
    keys = {"latent.npy", image} | ({"cls"} if num_classes else set())
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert set(names) == {f"{i:09d}.{key}" for i in range(12, 18) for key in keys}
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{i:09d}" for i in range(12, 18)]
    assert all(keys <= sample.keys() for sample in samples)
    data = path.read_bytes()
    assert (record.count, record.first_index, record.bytes) == (6, 12, len(data))
    assert record.sha256 == sha256(data).hexdigest()
    assert read_record(tmp_path, 2) == record


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it open
def test_a_pair_is_the_teachers_image_of_the_noise_and_label_of_its_index(tmp_path: Path) -> None:
    teacher = Softsign(channels=3)
    write_shard(tmp_path, 1, teacher, manifest_of(teacher))
    samples = webdataset.WebDataset(str(tar_path(tmp_path, 1)), shardshuffle=False)
    noise, labels = draw(0, range(6, 12), (3, 4, 4), 10)
    assert labels is not None
    stored = decode(samples, 6)
    assert torch.equal(stored.noise, noise)
    assert torch.equal(stored.images, teacher(noise, labels))
    assert stored.labels is not None
    assert torch.equal(stored.labels, labels)


def test_of_many_writers_one_creates_the_manifest_and_the_others_compare(tmp_path: Path) -> None:
    offers = [replace(MANIFEST, seed=i // 4) for i in range(32)]

    def offer(manifest: Manifest) -> bool:
        try:
            open_data_set(tmp_path, manifest)
        except InputError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = list(pool.map(offer, offers))
    winner = read_manifest(tmp_path)
    assert accepted == [manifest == winner for manifest in offers]
    assert list(contents(tmp_path)) == ["manifest.json"]


@pytest.mark.parametrize(
    ("other", "shown"),
    [
        (replace(MANIFEST, teacher="other"), "teacher was 'softsign', is 'other'"),
        (replace(MANIFEST, image_format="png"), "image_format was 'npy32', is 'png'"),
        (replace(MANIFEST, sampler={"steps": 9}), "sampler was {'steps': 2}, is {'steps': 9}"),
        (
            replace(MANIFEST, seed=1, num_classes=None),
            "seed was 0, is 1; num_classes was 10, is None",
        ),
    ],
)
def test_other_settings_are_refused_showing_the_difference(
    tmp_path: Path, other: Manifest, shown: str
) -> None:
    before = write(tmp_path, [0])
    with pytest.raises(InputError) as raised:
        open_data_set(tmp_path, other)
    assert f"got: {shown};" in str(raised.value)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "text", ['{"schema": 2}', "{", '{"schema": 1, "seed": 0}'], ids=lambda text: text
)
def test_another_schema_or_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=f"expected .* in {tmp_path}, got "):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"count": 6}'])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, text: str) -> None:
    record_path(tmp_path, 3).write_text(text)
    with pytest.raises(InputError, match=r"pairs-000003\.json"):
        read_record(tmp_path, 3)


def test_shards_do_not_depend_on_order_or_number_of_writers_or_repetition(tmp_path: Path) -> None:
    forward = write(tmp_path / "forward", [0, 1, 2])
    assert write(tmp_path / "shuffled", [2, 0, 1, 0, 2]) == forward
    with ThreadPoolExecutor(6) as pool:  # two writers of every shard at the same time
        jobs = [pool.submit(write, tmp_path / "many", [shard]) for shard in (0, 0, 1, 1, 2, 2)]
    assert all(job.exception() is None for job in jobs)
    assert contents(tmp_path / "many") == forward


def test_a_data_set_grows_and_its_old_shards_stay(tmp_path: Path) -> None:
    small = write(tmp_path, [0, 1])
    assert count_shards(tmp_path) == 2
    large = write(tmp_path, [2, 3])
    assert count_shards(tmp_path) == 4
    assert {name: large[name] for name in small} == small


def test_a_gap_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [0, 1, 3])
    with pytest.raises(InputError, match=r"expected shard 2 .* although shard 3 is finished"):
        count_shards(tmp_path)


def test_a_tar_without_a_record_is_no_shard(tmp_path: Path) -> None:
    whole = write(tmp_path, [0, 1])
    record_path(tmp_path, 1).unlink()
    assert count_shards(tmp_path) == 1
    assert read_record(tmp_path, 1) is None
    assert write(tmp_path, [1]) == whole


def test_images_that_are_not_finite_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected finite images, .* among indices 4 to 5"):
        write_shard(
            tmp_path, 0, Diverging(num_classes=None), manifest_of(Softsign(num_classes=None))
        )
    assert contents(tmp_path) == {}


def test_progress_is_told_every_batch_and_may_drop_the_shard(tmp_path: Path) -> None:
    told = []

    def stop(count: int) -> None:
        told.append(count)
        if told == [4, 2, 4]:
            raise KeyboardInterrupt

    write_shard(tmp_path, 0, Softsign(), MANIFEST, stop)
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, 1, Softsign(), MANIFEST, stop)
    assert contents(tmp_path) == before


def write_and_die(folder: Path, event: str, nth: int) -> None:
    """Write shards 0 and 1; kill this process at the nth such event of shard 1."""
    write(folder, [0])

    def hook(name: str, arguments: tuple) -> None:
        nonlocal nth
        if name == event and ".pairs-000001." in str(arguments[0]):
            nth -= 1
            if nth < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)  # Python tells of every file opened and renamed
    write_shard(folder, 1, Softsign(), MANIFEST, lambda _: sys.audit("batch", ".pairs-000001."))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("event", "nth"),
    [("batch", 0), ("batch", 1), ("open", 0), ("os.rename", 0), ("open", 1), ("os.rename", 1)],
    ids=["first batch", "last batch", "tar opened", "tar renamed", "record opened", "published"],
)
def test_a_killed_writer_leaves_no_shard_and_the_next_one_writes_the_same_bytes(
    tmp_path: Path, event: str, nth: int
) -> None:
    fork = multiprocessing.get_context("fork")
    writer = fork.Process(target=write_and_die, args=(tmp_path / "torn", event, nth))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert count_shards(tmp_path / "torn") == 1
    assert read_record(tmp_path / "torn", 1) is None
    again = write(tmp_path / "torn", [1])
    visible = {name: data for name, data in again.items() if not name.startswith(".")}
    assert visible == write(tmp_path / "whole", [0, 1])
