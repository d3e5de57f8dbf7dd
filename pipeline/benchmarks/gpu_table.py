"""The tables of gpu.json: what was measured on a GPU, and which of the bars it meets."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.benchmarks.gpu_models import OTHERS, PAPER, WAYS
from pipeline.benchmarks.gpu_rows import Figures
from pipeline.jobs.tables import markdown as markdown_table

FASTER, OF_PEAK, OF_LIMIT, OVERHEAD, STALL = 4.0, 0.5, 0.7, 0.05, 2.0


class Bar(NamedTuple):
    """A figure that was asked for.

    Attributes:
        what: It says.
        wanted: The figure as it was asked for.
        got: As it was measured; None if it was not.
        met: Whether it is what was asked for.
    """

    what: str
    wanted: str
    got: str | None
    met: bool = False


def markdown(result: Figures) -> str:
    """Return the bars, then the training steps and the sampling."""
    rows = {name: part["rows"].values() for name, part in result["parts"].items()}
    head = ["asked for", "bar", "measured", ""]
    lines = [
        [b.what, b.wanted, b.got or "-", "not measured" if b.got is None else "met" if b.met else
         "MISSED"]
        for b in bars(result)
    ]  # fmt: skip
    tables = [markdown_table([head, *lines])]
    head = ["model", "batch", "training step", "images/s", "of the limit", "of the peak", "GiB"]
    lines = [
        [
            *(row["size"], str(row["batch"]), row["way"], f"{row['images_per_second']:,.0f}"),
            *(share(row[name]) for name in ("of_limit", "of_peak")),
            f"{(row['peak_bytes'] or 0) / 2**30:.1f}",
        ]
        for row in rows.get("steps", ())
        if "failed" not in row
    ]
    tables += [markdown_table([head, *lines])] if lines else []
    head = ["model", "images at once", "sampling", "ms", "images/s", "of the limit"]
    lines = [
        [
            *(row["size"], str(row["batch"]), row["way"], f"{row['seconds'] * 1e3:.2f}"),
            *(f"{row['images_per_second']:,.0f}", share(row["of_limit"])),
        ]
        for row in rows.get("sampling", ())
        if "failed" not in row
    ]
    tables += [markdown_table([head, *lines])] if lines else []
    failed = [
        f"- {part}, {name}: {row['failed'].splitlines()[0]}"
        for part, found in result["parts"].items()
        for name, row in found["rows"].items()
        if isinstance(row.get("failed"), str)
    ]
    return "\n\n".join([*tables, "\n".join(failed)]).strip()


def share(value: float | None) -> str:
    """Show a share."""
    return "-" if value is None else f"{value:.1%}"


def bars(result: Figures) -> Iterator[Bar]:
    """Yield what was asked for, by what was measured."""
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    if tests := [row for row in parts.get("tests", {}).values() if "tests" in row]:
        number = sum(row["tests"] for row in tests)
        wrong = sum(len(row["failed"]) for row in tests)
        passed = not wrong and not any(row["exit_code"] for row in tests)
        yield Bar("tests marked gpu", "all pass", f"{number - wrong} of {number}", passed)
    else:
        yield Bar("tests marked gpu", "all pass", None)
    yield from bars_of_steps([r for r in parts.get("steps", {}).values() if "failed" not in r])
    name, wanted = "sampling: of the limit of matrix products", f">= {OF_LIMIT}"
    sampled = [row for row in parts.get("sampling", {}).values() if "failed" not in row]
    for size in dict.fromkeys(row["size"] for row in sampled):
        row = max((r for r in sampled if r["size"] == size), key=lambda r: r["of_limit"])
        got = f"{row['of_limit']:.2f} ({row['batch']} at once, {row['way']})"
        yield Bar(f"{size}, {name}", wanted, got, row["of_limit"] >= OF_LIMIT)
    if not sampled:
        yield Bar(name, wanted, None)
    name, wanted = "writing pairs: over the teacher alone", f"<= {OVERHEAD:.0%}"
    written = {way: row for way, row in parts.get("pairs", {}).items() if "failed" not in row}
    for way, row in written.items():
        shown, met = f"{row['overhead']:.1%}", row["overhead"] <= OVERHEAD
        yield Bar(f"{name}, {way}", wanted, shown, met)
    if not written:
        yield Bar(name, wanted, None)
    name, wanted = "a step that saves a checkpoint, over a usual one", f"<= {STALL}x"
    saved = {size: row for size, row in parts.get("saving", {}).items() if "failed" not in row}
    for size, row in saved.items():
        ratio = row["ratio"]["beside"]
        yield Bar(f"{size}, {name}", wanted, f"{ratio:.2f}x", ratio <= STALL)
    if not saved:
        yield Bar(name, wanted, None)


def bars_of_steps(rows: list[Figures]) -> Iterator[Bar]:
    """Yield the bars of training steps: of every size and batch, the best of all usual ways."""
    faster, peak = "training step: over the paper's way, eager in TF32", "of the peak of bf16"
    measured = {(row["size"], row["batch"]): dict[str, Figures]() for row in rows}
    for row in rows:
        if row["way"] not in OTHERS:
            measured[row["size"], row["batch"]][row["way"]] = row
    for (size, batch), ways in measured.items():
        ours = {way: row for way, row in ways.items() if WAYS[way]}
        if not ours:
            continue
        best = max(ours.values(), key=lambda row: row["images_per_second"])
        before = ways.get(PAPER, ways.get("TF32"))
        if before is None:
            yield Bar(f"{size}, batch {batch}, {faster}", f">= {FASTER}x", None)
        else:
            ratio = best["images_per_second"] / before["images_per_second"]
            got = f"{ratio:.2f}x ({best['way']} over {before['way']})"
            yield Bar(f"{size}, batch {batch}, {faster}", f">= {FASTER}x", got, ratio >= FASTER)
        got = best["of_peak"] and f"{best['of_peak']:.1%} ({best['way']})"
        met = bool(best["of_peak"]) and best["of_peak"] >= OF_PEAK
        yield Bar(f"{size}, batch {batch}, {peak}", f">= {OF_PEAK:.0%}", got, met)
    if not measured:
        yield Bar(faster, f">= {FASTER}x", None)
        yield Bar(peak, f">= {OF_PEAK:.0%}", None)
