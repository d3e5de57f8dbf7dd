"""Tars are read strictly: whole and plain, or not at all."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from data.tar import members, samples

CONTENTS = {"000.a": b"", "000.b.c": b"x" * 512, "001.a": b"y" * 1025, "002.a": b"z"}


def tar(
    contents: dict[str, bytes] = CONTENTS,
    form: int = tarfile.USTAR_FORMAT,
    kind: bytes = tarfile.REGTYPE,
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size, member.type = len(data), kind
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def listed(data: bytes) -> dict[str, bytes]:
    return {name: bytes(content) for name, content in members(data)}


def test_members_are_those_of_tarfile_and_of_webdataset() -> None:
    assert listed(tar()) == CONTENTS
    buffer = io.BytesIO()
    writer = TarWriter(buffer, mtime=0)
    writer.write({"__key__": "000", "a": b"1", "b.c": b"2"})
    writer.close()
    assert listed(buffer.getvalue()) == {"000.a": b"1", "000.b.c": b"2"}


def test_members_with_one_key_are_one_sample() -> None:
    found = [
        {kind: data if isinstance(data, str) else bytes(data) for kind, data in sample.items()}
        for sample in samples(tar())
    ]
    assert found == [
        {"__key__": "000", "a": b"", "b.c": b"x" * 512},
        {"__key__": "001", "a": b"y" * 1025},
        {"__key__": "002", "a": b"z"},
    ]
    assert list(samples(tar({}))) == []


def test_a_tar_cut_anywhere_is_refused() -> None:
    whole = tar()
    for at in range(len(whole.rstrip(b"\0")) + 512):  # two blocks of zeros are the end
        with pytest.raises(ValueError, match="a tar"):
            list(members(whole[:at]))


@given(st.data())
def test_a_changed_header_byte_is_refused(data: st.DataObject) -> None:
    whole = tar()
    with tarfile.open(fileobj=io.BytesIO(whole)) as file:
        starts = [member.offset for member in file.getmembers()]
    at = data.draw(st.sampled_from(starts)) + data.draw(st.integers(0, 511))
    other = data.draw(st.integers(1, 255)) ^ whole[at]
    changed = whole[:at] + bytes([other]) + whole[at + 1 :]
    try:
        found = listed(changed)
    except ValueError:
        return
    assert found == CONTENTS  # padding of the checksum field itself says the same


@given(st.binary(max_size=3000))
def test_noise_is_refused_and_ends(data: bytes) -> None:
    if any(data):
        with pytest.raises(ValueError, match=r"tar|checksum|blocks|plain"):
            list(members(data))
        with pytest.raises(ValueError, match=r"tar|checksum|blocks|plain"):
            list(members(data.ljust(4096, b"\0")))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", "without an end"),
        (tar()[:-1], "no whole blocks"),
        (tar() + b"x" * 512, "without an end"),
        (tar({"000.a": b"x" * 2000})[:1024], r"ends inside 000\.a"),
        (tar({"a" * 90 + "/b.c": b""}), "no plain file"),
        (tar({"a" * 90 + "/" + "b" * 20: b""}), "no plain file"),
        (tar({"a" * 120: b""}, tarfile.GNU_FORMAT), "no plain file"),
        (tar({"a" * 120: b""}, tarfile.PAX_FORMAT), "no plain file"),
        (tar({"\xe4": b""}), "no tar header"),
        (tar({"000.a": b""}, kind=tarfile.DIRTYPE), "no plain file"),
        (tar({"000.a": b""}, kind=tarfile.SYMTYPE), "no plain file"),
        (tar({"000.a": b""}, kind=tarfile.LNKTYPE), "no plain file"),
    ],
    ids=[
        *("nothing", "half a block", "after the end", "cut", "folder", "prefix", "gnu", "pax"),
        *("no ascii", "a folder", "a link", "a hard link"),
    ],
)
def test_what_is_not_plain_is_refused(data: bytes, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        list(members(data))


def test_a_name_or_a_key_that_comes_again_is_refused() -> None:
    end = len(tar({}))
    one, two = tar({"000.a": b"1"})[:1024], tar({"001.a": b"2"})[:1024]
    with pytest.raises(ValueError, match=r"000\.a twice"):
        list(members(one + two + one + bytes(end)))
    again = tar({"000.b": b"3"})[:1024]
    with pytest.raises(ValueError, match="000 in two places"):
        list(samples(one + two + again + bytes(end)))
