"""The members of a tar, read strictly from memory.

A shard is a plain POSIX (ustar) archive of regular files with short names. Python's tarfile takes
some damage (a cut between members, a bad checksum) for the end of the archive; this reader raises.
It also needs a fiftieth of the time per member.
"""

from collections.abc import Iterator
from itertools import groupby
from zlib import adler32

BLOCK = 512


def members(data: bytes) -> Iterator[tuple[str, memoryview]]:
    """Yield name and content (a view of `data`) of every member, in order.

    Raises:
        ValueError: If the archive is not complete and plain.
    """
    if len(data) % BLOCK:
        raise ValueError(f"a tar of {len(data)} bytes, no whole blocks")
    at, seen, view = 0, set(), memoryview(data)
    while any(header := data[at : at + BLOCK]):
        name, size = _parse(header, at)
        if name in seen:
            raise ValueError(f"{name} twice")
        seen.add(name)
        at += BLOCK
        if at + size > len(data):
            raise ValueError(f"a tar that ends inside {name}")
        yield name, view[at : at + size]
        at += -(-size // BLOCK) * BLOCK
    if len(data) - at < 2 * BLOCK or data.count(0, at) != len(data) - at:
        raise ValueError(f"a tar without an end at byte {at}")


def samples(data: bytes) -> Iterator[dict[str, str | memoryview]]:
    """Yield each run of members with the same key (the name up to the first dot) as one sample.

    Raises:
        ValueError: If the archive is not complete and plain, or a key comes again later.
    """
    keys = set()
    for key, group in groupby(members(data), lambda member: member[0].partition(".")[0]):
        if key in keys:
            raise ValueError(f"{key} in two places")
        keys.add(key)
        yield {"__key__": key} | {name.partition(".")[2]: content for name, content in group}


def _parse(header: bytes, at: int) -> tuple[str, int]:
    """Return name and size of a member."""
    try:
        name = header[:100].rstrip(b"\0").decode("ascii")
        size = int(header[124:136].rstrip(b"\0 "), 8)
        checksum = int(header[148:156].rstrip(b"\0 "), 8)
    except ValueError as error:
        raise ValueError(f"no tar header at byte {at}") from error
    if checksum != _sum(header[:148] + b" " * 8 + header[156:]):  # as if its own field were spaces
        raise ValueError(f"a wrong checksum at byte {at}")
    plain = header[257:263] == b"ustar\0" and header[156:157] == b"0" and header[345] == 0
    if not plain or not name or "/" in name:
        raise ValueError(f"a member that is no plain file at byte {at}")
    return name, size


def _sum(block: bytes) -> int:
    """Return the sum of its bytes, in a tenth of the time that `sum` takes.

    Adler's checksum begins with that sum, plus 1, in 16 bits: enough for 256 bytes.
    """
    return (adler32(block[:256]) & 0xFFFF) + (adler32(block[256:]) & 0xFFFF) - 2
