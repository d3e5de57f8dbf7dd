"""The tables of gpu.json: what was measured on a GPU, and which of the bars it meets."""

from collections.abc import Iterator
from typing import NamedTuple, get_args

from pipeline.benchmarks.gpu_models import OTHERS, PAPER, WAYS
from pipeline.benchmarks.gpu_rows import Figures, Part
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
    """Return where it was measured, the bars, steps, sampling and training, and what is lacking."""
    rows = {name: part["rows"] for name, part in result["parts"].items()}
    lines = [
        [b.what, b.wanted, b.got or "-", "not measured" if b.got is None else "met" if b.met else
         "MISSED"]
        for b in bars(result)
    ]  # fmt: skip
    tables = [
        [["asked for", "bar", "measured", ""], *lines],
        of_steps(measured(rows.get("steps", {}))),
        of_sampling(measured(rows.get("sampling", {}))),
        of_training(measured(rows.get("training", {}))),
    ]
    shown = [markdown_table(table) for table in tables if len(table) > 1]
    return "\n\n".join([origin(result), *shown, "\n".join(lacking(result))]).strip()


def measured(rows: Figures) -> Figures:
    """Return the rows that have not failed."""
    return {name: row for name, row in rows.items() if not isinstance(row.get("failed"), str)}


def origin(result: Figures) -> str:
    """Say on which machine and with what the parts were measured."""
    places = dict.fromkeys(
        f"{', '.join(part['hardware']['gpus']) or part['hardware']['cpu']}, "
        f"torch {part['versions']['torch']}, commit {part['commit']}"
        for part in result["parts"].values()
        if "hardware" in part
    )
    rehearsal = ["A rehearsal: its figures mean nothing."] if result["rehearsal"] else []
    return "\n".join([*rehearsal, *places])


def of_steps(rows: Figures) -> list[list[str]]:
    """Return the table of training steps."""
    head = ["model", "batch", "training step", "images/s", "of the limit", "of the peak", "GiB"]
    return [head] + [
        [
            *(row["size"], str(row["batch"]), row["way"], f"{row['images_per_second']:,.0f}"),
            *(share(row[name]) for name in ("of_limit", "of_peak")),
            gib(row),
        ]
        for row in rows.values()
    ]


def of_sampling(rows: Figures) -> list[list[str]]:
    """Return the table of sampling."""
    head = ["model", "images at once", "sampling", "ms", "images/s", "of the limit"]
    return [head] + [
        [
            *(row["size"], str(row["batch"]), row["way"], f"{row['seconds'] * 1e3:.2f}"),
            *(f"{row['images_per_second']:,.0f}", share(row["of_limit"])),
        ]
        for row in rows.values()
    ]


def of_training(rows: Figures) -> list[list[str]]:
    """Return the table of the jobs of a distillation, with the last figures of its validation."""
    lines = [["job", "seconds", "images/s", "GiB", "validation"]]
    for name, row in rows.items():
        last = {key: value for line in row.get("last", ()) for key, value in line.items()}
        found = [f"{k[11:]} {v:.4g}" for k, v in last.items() if k.startswith("validation_")]
        rate = f"{row['images_per_second']:,.0f}" if "images_per_second" in row else "-"
        lines.append([name, f"{row['seconds']:.0f}", rate, gib(row), ", ".join(found) or "-"])
    return lines


def lacking(result: Figures) -> Iterator[str]:
    """Yield a line for every row or test that failed, and for every part that is not whole."""
    for part, found in result["parts"].items():
        for name, row in found["rows"].items():
            failed = row.get("failed") or {}
            if isinstance(failed, str):
                failed = {name: failed}
            for what, text in failed.items():
                yield f"- {part}, {what}: {(text.strip() or '?').splitlines()[0]}"
    for part in get_args(Part):
        if not result["parts"].get(part, {}).get("whole"):
            yield f"- {part}: not whole; the same command goes on"


def gib(row: Figures) -> str:
    """Show the peak of memory, where it is known."""
    peak = row.get("peak_bytes")
    return "-" if peak is None else f"{peak / 2**30:.1f}"


def share(value: float | None) -> str:
    """Show a share."""
    return "-" if value is None else f"{value:.1%}"


def bars(result: Figures) -> Iterator[Bar]:
    """Yield what was asked for, by what was measured."""
    parts = {name: part["rows"] for name, part in result["parts"].items()}
    tests = [row for row in parts.get("tests", {}).values() if row.get("tests")]
    number, got = sum(row["tests"] for row in tests), None
    passed = number - sum(len(row["failed"]) + row["skipped"] for row in tests)
    if number:  # a rehearsal runs none
        got = f"{passed} of {number}"
    ended_well = not any(row["exit_code"] for row in tests)
    yield Bar("tests marked gpu", "all pass", got, passed == number and ended_well)
    yield from bars_of_steps([*measured(parts.get("steps", {})).values()])
    name, wanted = "sampling: of the limit of matrix products", f">= {OF_LIMIT}"
    sampled = [*measured(parts.get("sampling", {})).values()]
    for size in dict.fromkeys(row["size"] for row in sampled):
        row = max((r for r in sampled if r["size"] == size), key=lambda r: r["of_limit"])
        got = f"{row['of_limit']:.2f} ({row['batch']} at once, {row['way']})"
        yield Bar(f"{size}, {name}", wanted, got, row["of_limit"] >= OF_LIMIT)
    if not sampled:
        yield Bar(name, wanted, None)
    name, wanted = "writing pairs: over the teacher alone", f"<= {OVERHEAD:.0%}"
    written = measured(parts.get("pairs", {}))
    for way, row in written.items():
        shown, met = f"{row['overhead']:.1%}", row["overhead"] <= OVERHEAD
        yield Bar(f"{name}, {way}", wanted, shown, met)
    if not written:
        yield Bar(name, wanted, None)
    name, wanted = "a step that saves a checkpoint, over a usual one", f"<= {STALL}x"
    saved = measured(parts.get("saving", {}))
    for size, row in saved.items():
        ratio = row["ratio"]["beside"]
        yield Bar(f"{size}, {name}", wanted, f"{ratio:.2f}x", ratio <= STALL)
    if not saved:
        yield Bar(name, wanted, None)


def bars_of_steps(rows: list[Figures]) -> Iterator[Bar]:
    """Yield the bars of training steps: of every size and batch, the best of all usual ways."""
    faster, peak = "training step: over the paper's way, eager in TF32", "of the peak of bf16"
    usual = {(row["size"], row["batch"]): dict[str, Figures]() for row in rows}
    for row in rows:
        if row["way"] not in OTHERS:
            usual[row["size"], row["batch"]][row["way"]] = row
    for (size, batch), ways in usual.items():
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
    if not usual:
        yield Bar(faster, f">= {FASTER}x", None)
        yield Bar(peak, f">= {OF_PEAK:.0%}", None)
