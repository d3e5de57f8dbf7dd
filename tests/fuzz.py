"""Random damage to a data set of pairs, decided by a seed: what test_fuzz.py does to it.

Accidents change files and leave the records alone. Tampering makes the records fit again, as
somebody would who wants the change to go unnoticed.
"""

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.manifest import read_manifest, record_path, tar_path
from get.errors import InputError

Damage = Callable[[random.Random, Path, int], str]
"""Changes shard `int` of the data set, or its manifest; says how."""


# ---------------------------------------------------------------- bytes


def change_bytes(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Return other bytes, and what was done to them."""
    at = rng.randrange(len(data) + 1) if rng.random() < 0.7 else 512 * rng.randrange(8)
    size = rng.choice([1, 1, 2, 8, 100, 512, 10_240])
    how = rng.choice(
        ["flip", "random", "zeros", "cut", "remove", "insert", "repeat", "swap", "end"]
    )
    middle = data[at : at + size]
    match how:
        case "flip":
            new = bytes(byte ^ (1 << rng.randrange(8)) for byte in middle)
        case "random":
            new = rng.randbytes(len(middle))
        case "zeros":
            new = bytes(len(middle))
        case "cut":
            return data[:at], f"cut at {at}"
        case "remove":
            new = b""
        case "insert":
            new = rng.randbytes(size) + middle
        case "repeat":
            new = middle + middle
        case "swap":
            half = len(middle) // 2
            new = middle[half:] + middle[:half]
        case _:
            return data + rng.randbytes(size), f"{size} bytes more"
    return data[:at] + new + data[at + size :], f"{how} {size} at {at}"


def tar_bytes(rng: random.Random, folder: Path, shard: int) -> str:
    """Change the bytes of a tar."""
    path = tar_path(folder, shard)
    data, how = change_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"tar: {how}"


def json_bytes(rng: random.Random, folder: Path, shard: int) -> str:
    """Change the bytes of a record or of the manifest."""
    path = rng.choice([record_path(folder, shard), folder / "manifest.json"])
    data, how = change_bytes(rng, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {how}"


# ---------------------------------------------------------------- fields


def other_value(rng: random.Random, value: Any) -> Any:
    """Return a value in the place of one in JSON."""
    kinds: list[Any] = [None, True, "", "x" * 2000, "\x1b[2J", [], {}, [value], {"a": value}, 1e999]
    numbers = [0, 1, -1, 2, 3, 7, 255, 2**31, 2**63, 2**64, 10**30, 0.5, float("nan"), -0.0]
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice([value + 1, value - 1, -value, 2 * value, str(value), *numbers])
    if isinstance(value, list) and rng.random() < 0.7:
        return rng.choice(
            [value[::-1], value[1:], [*value, 1], [rng.choice(numbers) for _ in value]]
        )
    if isinstance(value, dict) and value and rng.random() < 0.7:
        name = rng.choice(list(value))
        return value | {name: other_value(rng, value[name])}
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice([value[:-1], value[::-1], value.upper(), "png", "npy", "npy32"])
    return rng.choice([*kinds, *numbers])


def change_field(rng: random.Random, path: Path) -> str:
    """Change, remove or add a field of a file of JSON."""
    fields = json.loads(path.read_text())
    name = rng.choice(list(fields))
    if (how := rng.random()) < 0.1:
        del fields[name]
        return f"{path.name}: no {name}" if not path.write_text(json.dumps(fields)) else name
    if how < 0.2:
        name, fields[name] = "more", 1
    else:
        fields[name] = other_value(rng, fields[name])
    path.write_text(json.dumps(fields))
    return f"{path.name}: {name} {fields.get(name)!r}"[:200]


def record_field(rng: random.Random, folder: Path, shard: int) -> str:
    """Change a field of a record."""
    return change_field(rng, record_path(folder, shard))


def manifest_field(rng: random.Random, folder: Path, shard: int) -> str:
    """Change a field of the manifest."""
    return change_field(rng, folder / "manifest.json")


# ---------------------------------------------------------------- members


def member_headers(rng: random.Random, folder: Path, shard: int) -> str:
    """Change names, sizes, types or modes of members, with the right checksums."""
    data = bytearray(tar_path(folder, shard).read_bytes())
    with tarfile.open(tar_path(folder, shard)) as tar:
        members = tar.getmembers()
    at = rng.choice(members).offset
    name = rng.choice(
        [b"../x", b"/etc/passwd", b"a/b", b"", b"000000003.cls", b"\xff\xfe", b"x" * 100]
    )
    places = {
        "name": (at, name.ljust(100, b"\0")),
        "size": (at + 124, b"%011o\0" % rng.choice([0, 1, 511, 512, 10**6, 8**11 - 1])),
        "base 256": (at + 124, b"\x80" + rng.randbytes(11)),
        "type": (at + 156, rng.choice([b"\0", b"1", b"2", b"5", b"x", b"g", b"L", b"K", b"S"])),
        "magic": (at + 257, rng.choice([b"ustar ", b"\0" * 6, b"USTAR\0"])),
        "prefix": (at + 345, b"folder"),
        "mode": (at + 100, b"0000777\0"),
    }
    what = rng.choice(list(places))
    start, new = places[what]
    data[start : start + len(new)] = new
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    tar_path(folder, shard).write_bytes(data)
    return f"header at {at}: {what} {new[:20]!r}"


def member_contents(rng: random.Random, folder: Path, shard: int) -> str:
    """Write a tar anew in which members are changed, missing, twice, or in another order."""
    path = tar_path(folder, shard)
    with tarfile.open(path) as tar:
        members = [(m.name, reader.read()) for m in tar if (reader := tar.extractfile(m))]
    at = rng.randrange(len(members))
    name, content = members[at]
    how = rng.choice(["bytes", "other", "number", "drop", "twice", "order", "rename"])
    match how:
        case "bytes" if content:
            members[at] = name, change_bytes(rng, content)[0]
        case "other":
            members[at] = name, other_content(rng)
        case "number":
            members[at] = name, other_number(rng, name, content)
        case "drop":
            del members[at]
        case "twice":
            members.insert(at, members[at])
        case "order":
            rng.shuffle(members)
        case _:
            members[at] = rng.choice([name + "x", "000000099" + name[9:], name.upper()]), content
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"members: {how} {members[min(at, len(members) - 1)][0]}"


def other_content(rng: random.Random) -> bytes:
    """Return a file that may be valid, but not for a pair."""
    buffer = io.BytesIO()
    match rng.choice(["png", "large png", "npy", "pickle", "text", "empty"]):
        case "png":
            mode = rng.choice(["L", "RGB", "RGBA", "1", "P", "I;16"])
            Image.new(mode, (4, 4)).save(buffer, "png")
        case "large png":  # few bytes that decode to many
            Image.new("L", (4000, 4000)).save(buffer, "png")
        case "npy":
            kind = rng.choice(["<f4", ">f4", "<f8", "<i8", "|u1", "<c8", "<U4"])
            np.save(buffer, np.zeros(rng.choice([(1, 4, 4), (4, 4), (), (0,), (9, 1, 4, 4)]), kind))
        case "pickle":
            np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
        case "text":
            return rng.choice([b"7", b"-1", b"99999999999", b"1e3", b" 7", b"7\n", b"\xd9\xa7"])
    return buffer.getvalue()


def other_number(rng: random.Random, name: str, content: bytes) -> bytes:
    """Return the content with one number changed, as valid as before."""
    if name.endswith(".cls"):
        return str(rng.choice([0, 1, 9, 10, 2**31])).encode()
    if name.endswith(".npy"):
        array = np.load(io.BytesIO(content))
        other = rng.choice([0, 1, -1, 3e38, float("nan"), float("inf"), -float("inf")])
        with np.errstate(all="ignore"):
            array.reshape(-1)[rng.randrange(array.size)] = np.array(other).astype(array.dtype)
        buffer = io.BytesIO()
        np.save(buffer, array)
        return buffer.getvalue()
    image = Image.open(io.BytesIO(content)).copy()
    image.putpixel((0, 0), rng.randrange(256))
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


# ---------------------------------------------------------------- files


def files(rng: random.Random, folder: Path, shard: int) -> str:
    """Remove, empty, exchange or replace a file by something that is none."""
    paths = [tar_path(folder, shard), record_path(folder, shard), folder / "manifest.json"]
    path = rng.choice(paths[:2] if rng.random() < 0.9 else paths)
    other = (tar_path if path.suffix == ".tar" else record_path)(folder, (shard + 1) % 3)
    how = rng.choice(["remove", "empty", "folder", "pipe", "loop", "dangling", "other", "both"])
    path.unlink()
    match how:
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to(folder / "nothing")
        case "other":
            path.write_bytes(other.read_bytes())
        case "both":
            for place in (tar_path, record_path):
                place(folder, shard).unlink(missing_ok=True)
                place(folder, shard).write_bytes(place(folder, (shard + 1) % 3).read_bytes())
    return f"{path.name}: {how}"


def nothing(rng: random.Random, folder: Path, shard: int) -> str:
    """Change nothing: what is reported then is a false alarm."""
    return "nothing"


DAMAGES: tuple[Damage, ...] = (
    tar_bytes,
    json_bytes,
    record_field,
    manifest_field,
    member_headers,
    member_contents,
    files,
    nothing,
)


def fit_records(folder: Path, shards: int) -> None:
    """Make all records fit the tars and the manifest that are there, where they can be read."""
    try:
        manifest = read_manifest(folder)
    except InputError:
        return
    for shard in range(shards):
        try:
            data, record = (place(folder, shard) for place in (tar_path, record_path))
            if not (data.is_file() and record.is_file()):
                continue
            content, count = data.read_bytes(), manifest.pairs_per_shard
            fields = {
                "count": count,
                "first_index": shard * count,
                "sha256": sha256(content).hexdigest(),
                "bytes": len(content),
                "manifest": manifest.identity,
            }
            record.write_text(json.dumps(fields))
        except OSError:  # a loop of links
            continue
