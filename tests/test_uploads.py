"""Shards that are uploaded: what arrives is compared, by the store's checksum or by reading it."""

from hashlib import md5
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
from fsspec.callbacks import DEFAULT_CALLBACK

from data.bucket import checksums
from data.manifest import tar_name
from data.places import open_site
from data.writer import write_shards
from get.errors import InputError

from .problems import Softsign
from .test_bucket import MANIFEST, Known, files, place

__all__ = ["place"]


class Cutting(Known):
    """A store that keeps half of what is uploaded."""

    protocol = "az"

    def put_file(self, lpath, rpath, callback=DEFAULT_CALLBACK, mode="overwrite", **kwargs):
        data = Path(lpath).read_bytes()
        super().pipe_file(rpath, data[: len(data) // 2])


class Flipping(Known):
    """A store that changes a byte of what is uploaded."""

    protocol = "abfs"

    def put_file(self, lpath, rpath, callback=DEFAULT_CALLBACK, mode="overwrite", **kwargs):
        data = bytearray(Path(lpath).read_bytes())
        data[600] ^= 1
        super().pipe_file(rpath, bytes(data))


class Telling(Known):
    """A store that tells an ETag of what it holds, and counts how often it is read."""

    protocol = "s3a"
    etag = staticmethod(lambda data: f'"{md5(data).hexdigest()}"')
    reads: ClassVar[list[str]] = []

    def info(self, path, **kwargs):
        about = super().info(path, **kwargs)
        return about | {"ETag": self.etag(super().cat_file(path))}

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.reads.append(path.rpartition("/")[2])
        return super().cat_file(path, start=start, end=end, **kwargs)


for kind in (Cutting, Flipping, Telling):
    fsspec.register_implementation(kind.protocol, kind, clobber=True)


def test_a_tar_that_arrives_in_part_has_no_record_and_is_named_in_one_line(place):
    bucket = open_site(f"az://{place}")
    bucket.open(MANIFEST)
    with pytest.raises(InputError, match=r"of az://.*pairs-000000\.tar after its upload, got \d+ "):
        write_shards(bucket, [0], Softsign(), MANIFEST)
    assert sorted(files(place)) == ["manifest.json", tar_name(0)]
    write_shards(f"memory://{place}", [0], Softsign(), MANIFEST)
    assert open_site(f"memory://{place}").finished(0)


def test_a_tar_that_arrives_with_other_bytes_has_no_record_and_is_named(place):
    bucket = open_site(f"abfs://{place}")
    bucket.open(MANIFEST)
    with pytest.raises(InputError, match=r"pairs-000000\.tar after its upload, got others"):
        write_shards(bucket, [0], Softsign(), MANIFEST)
    assert sorted(files(place)) == ["manifest.json", tar_name(0)]


@pytest.mark.parametrize(
    ("etag", "reads"),
    [
        (Telling.etag, 0),
        (lambda data: '"00000000000000000000000000000000"', 1),  # of an encrypted object
        (lambda data: '"0x8DC"', 1),
    ],
    ids=["md5", "encrypted", "other"],
)
def test_a_tar_is_read_again_only_if_the_store_does_not_tell_its_md5(
    place, monkeypatch, etag, reads
):
    monkeypatch.setattr(Telling, "etag", staticmethod(etag))
    monkeypatch.setattr(Telling, "reads", [])
    bucket = open_site(f"s3a://{place}")
    bucket.open(MANIFEST)
    write_shards(bucket, [0], Softsign(), MANIFEST)
    assert bucket.finished(0)
    assert Telling.reads.count(tar_name(0)) == reads


def test_checksums_are_those_that_stores_tell(tmp_path, monkeypatch):
    """The MD5 of nothing, of 10 bytes in three parts, and that of their MD5s."""
    monkeypatch.setattr("data.bucket.PART", 4)
    (tmp_path / "nothing").write_bytes(b"")
    assert "d41d8cd98f00b204e9800998ecf8427e" in checksums(tmp_path / "nothing")
    (tmp_path / "ten").write_bytes(b"0123456789")
    parts = md5(b"".join(md5(part).digest() for part in (b"0123", b"4567", b"89"))).hexdigest()
    assert checksums(tmp_path / "ten") == {
        "781e5e245d69b566979b86e28d23f2c7",
        "eB5eJF1ptWaXm4bijSPyxw==",
        f"{parts}-3",
    }
