"""What a data set says that is made of others: its sources, and which of their pairs it holds.

Its manifest names the data sets that a teacher made, with their seeds, and what was done since. The
record of each of its shards has the origin of its pairs, for instance `0:17-20 0:25 1:3`: indices
17 to 20 and 25 of the first source, then index 3 of the second. So noise and labels can be checked
as everywhere, with the seed and the index that they were drawn from.

Importing this file is quick: it needs neither torch nor numpy.
"""

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import Any

from data.strict import integer, text

Run = tuple[int, range]
"""A source and consecutive indices in it."""
RUN = r"[0-9]{1,4}:[0-9]{1,19}(?:-[0-9]{1,19})?"
ORIGINS = re.compile(rf"{RUN}(?: {RUN})*")
MOST = 2**19  # characters of the origins in a record


def origins_text(runs: Iterable[Run]) -> str:
    """Return runs as text."""
    return " ".join(
        f"{source}:{at[0]}" if len(at) == 1 else f"{source}:{at[0]}-{at[-1]}"
        for source, at in joined(runs)
    )


def parse_origins(origins: str) -> list[Run]:
    """Return the runs of a text; ValueError if it is none."""
    if not ORIGINS.fullmatch(origins):
        raise ValueError(f"origins {origins[:50]!r}")
    runs = []
    for part in origins.split():
        source, _, indices = part.partition(":")
        first, _, last = indices.partition("-")
        runs.append((int(source), range(int(first), int(last or first) + 1)))
    return runs


def joined(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield the runs, those that follow on each other as one."""
    before: Run | None = None
    for source, at in runs:
        if before is not None and (source, at.start) == (before[0], before[1].stop):
            before = source, range(before[1].start, at.stop)
            continue
        if before is not None:
            yield before
        before = source, at
    if before is not None:
        yield before


def cut(runs: Iterable[Run], rows: range) -> Iterator[Run]:
    """Yield the runs of consecutive rows of a shard."""
    row = 0
    for source, at in runs:
        part = at[max(rows.start - row, 0) : max(rows.stop - row, 0)]
        if len(part):
            yield source, part
        row += len(at)


def is_origins(value: Any) -> bool:
    """Rule for the origins in a record."""
    try:
        return isinstance(value, str) and len(value) <= MOST and all(parse_origins(value))
    except ValueError:
        return False


def is_derived(value: Any) -> bool:
    """Rule for `derived` in a manifest."""
    return (
        isinstance(value, dict)
        and value.keys() == {"sources", "history"}
        and _all_have(value["sources"], SOURCE)
        and _all_have(value["history"], STEP)
    )


def last_step(derived: dict[str, Any] | None) -> str:
    """Say in few words what was done last, with a hash of all that was done."""
    if derived is None:
        return "pairs of a teacher"
    step = derived["history"][-1]
    settings = " ".join(f"{name} {value}" for name, value in step["settings"].items())
    hashed = sha256(json.dumps(derived, sort_keys=True).encode()).hexdigest()[:8]
    return f"{step['verb']} {settings}".rstrip() + f" of {len(step['of'])} data sets ({hashed})"


def _all_have(values: Any, rules: dict[str, Any]) -> bool:
    """Say whether it is a list of objects, at least one, that fulfil these rules."""
    return (
        isinstance(values, list)
        and len(values) > 0
        and all(
            isinstance(value, dict)
            and value.keys() == rules.keys()
            and all(rule(value[name]) for name, rule in rules.items())
            for value in values
        )
    )


SOURCE = {"manifest": text, "seed": integer(0, 2**64 - 1)}
"""A data set that a teacher made: the identity of its manifest, and its seed."""
STEP = {
    "verb": text,
    "settings": lambda value: isinstance(value, dict) and len(json.dumps(value)) < 10_000,
    "of": lambda value: _all_have(value, OPERAND),
    "selection": text,
}
"""What was done, with what settings, to which data sets; a hash of the pairs that were chosen."""
OPERAND = {"manifest": text, "shards": integer(1, 2**31), "records": text}
"""A data set as it was then: its manifest's identity, its shards, a hash of the hashes of all."""
