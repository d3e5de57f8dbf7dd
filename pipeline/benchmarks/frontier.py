"""What certified smoothing costs: certified accuracy against evaluations, for every way of solving.

`labelling.py` makes the labels; here they become certificates, rows of figures, a table and a plot.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data.files import read_json
from get.confidence import certified_radius
from get.noise import step_seed
from get.robustness import Audit, Bound, audit, bounded
from pipeline.benchmarks.labelling import ADAPTIVE, FIXED, TWIN, Labelled, ways
from pipeline.jobs.tables import markdown as markdown_table
from pipeline.recipes.settings_classify import CertifyConfig

RADII = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
PAPER = ((10_000, 400), (10_000, 2000), (10_000, 10_000), (100_000, 400), (100_000, 10_000))
POINTS = 1.0  # a row is as good as the baseline if it loses at most so many points at every radius


class Counting(NamedTuple):
    """How the labels of a way are counted.

    Attributes:
        bound: The bound; None counts votes as they are.
        audits: Copies that are solved as the certified classifier solves them.
    """

    bound: Bound | None = None
    audits: int = 0


def rows_of(
    found: Sequence[Mapping[str, Labelled]], truth: Tensor, config: CertifyConfig
) -> list[dict[str, Any]]:
    """Return a row of figures for every way and every sound or unsound counting of its labels."""
    table = ways(config)
    shares = [max(1, round(share * config.num_trials)) for share in config.audit_shares]
    rows = []
    for name in found[0]:
        how = table.get(name)
        needs_audit = how is not None and how.needs_audit
        countings = [Counting()]
        if needs_audit:
            countings += [Counting(bound, k) for k in shares for bound in ("stated", "audited")]
        for counting in countings:
            rows.append(_row(name, counting, found, truth, config, not needs_audit))
    return rows


def _row(
    name: str,
    counting: Counting,
    found: Sequence[Mapping[str, Labelled]],
    truth: Tensor,
    config: CertifyConfig,
    independent: bool,
) -> dict[str, Any]:
    """Return the figures of one way and counting over all images."""
    first = config.num_selection
    radii, evaluations, disagreement = [], [], []
    seconds: tuple[list[float], list[float]] = [], []  # wall, CPU
    for index, (image, right) in enumerate(zip(found, truth.tolist(), strict=True)):
        way, exact = image[name], image[ADAPTIVE]
        label = int(way.labels[:first].mode().values)
        labels, reference = way.labels[first:], exact.labels[first:]
        spent, part = float(way.evaluations.sum()) + way.once, 0.0
        checked: Audit | None = None
        if counting.bound is not None:
            drawn: list[Tensor] = []

            def solved(chosen: Tensor, reference: Tensor = reference, drawn=drawn) -> Tensor:
                drawn.append(chosen)
                return reference[chosen]

            generator = torch.Generator().manual_seed(step_seed(config.seed, index, 1))
            checked = audit(labels, label, counting.audits, solved, generator, counting.bound)
            (chosen,) = drawn
            spent += float(exact.evaluations[first:][chosen].sum())
            part = len(chosen) / len(exact.labels)
        count = int((labels == label).sum())
        p = bounded(count, config.num_trials, config.alpha, checked, counting.bound or "audited")
        radius = certified_radius(p, config.sigma)
        radii.append(radius if label == right and radius > 0 else -1.0)
        evaluations.append(spent)
        for total, own, audited in zip(seconds, way.seconds, exact.seconds, strict=True):
            total.append(own + part * audited)
        of_class = labels == label
        disagreement.append(float((reference[of_class] != label).double().mean()) if count else 0.0)
    certified = torch.tensor(radii, dtype=torch.float64)
    trials, alpha = config.num_trials, config.alpha
    perfect = Audit(counting.audits, 0, counting.audits) if counting.bound else None
    most = bounded(trials, trials, alpha, perfect, counting.bound or "audited")
    return {
        "name": name,
        "bound": counting.bound,
        "audits": counting.audits,
        "sound": independent or counting.bound is not None,
        "evaluations": _mean(evaluations),
        "seconds": _mean(seconds[0]),
        "cpu_seconds": _mean(seconds[1]),
        "certified": {str(r): float((certified >= r).double().mean()) for r in RADII},
        "average_radius": float(certified.clamp_min(0).mean()),
        "most_radius": certified_radius(most, config.sigma),
        "disagreement": _mean(disagreement),
    }


def largest_radii(config: CertifyConfig) -> list[dict[str, Any]]:
    """Return the radii that no certificate exceeds, where all labels are one class.

    They are functions of the numbers of copies and audits alone: those of these settings, and those
    that the paper on serialised smoothing uses.
    """
    own = [(config.num_trials, max(1, round(s * config.num_trials))) for s in config.audit_shares]
    rows = []
    for trials, audits in dict.fromkeys((*own, *PAPER)):
        bounds: dict[str, float] = {
            "votes": bounded(trials, trials, config.alpha),
            "stated": bounded(trials, trials, config.alpha, Audit(audits, 0, audits), "stated"),
            "audited": bounded(trials, trials, config.alpha, Audit(audits, 0, audits)),
        }
        radii = {name: certified_radius(p, config.sigma) for name, p in bounds.items()}
        rows.append({"trials": trials, "audits": audits, **radii})
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def compare(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add to every row how it compares with the baseline; return the best sound row.

    `speed` is the baseline's evaluations over the row's, `speed_seconds` the same of CPU time,
    `loss` the most points of certified accuracy that it loses at a radius that it can reach, and
    `loss_anywhere` at any radius, by which the best is chosen.
    """
    base = next(row for row in rows if row["name"] == FIXED)
    for row in rows:
        row["speed"] = base["evaluations"] / row["evaluations"] if row["evaluations"] else None
        row["speed_seconds"] = base["cpu_seconds"] / max(row["cpu_seconds"], 1e-9)
        reached = [r for r in RADII if r <= row["most_radius"]]
        lost = [100 * (base["certified"][str(r)] - row["certified"][str(r)]) for r in reached]
        row["loss"] = max(lost)
        row["loss_anywhere"] = max(
            100 * (base["certified"][str(r)] - row["certified"][str(r)]) for r in RADII
        )
    good = [
        row
        for row in rows
        if row["sound"] and row["name"] != TWIN and row["loss_anywhere"] <= POINTS + 1e-9
    ]
    return min(good, key=lambda row: row["evaluations"])


def caption(figures: Mapping[str, Any]) -> str:
    """Return a sentence with the numbers behind certified.json."""
    numbers = figures["settings"]
    return (
        f"{figures['images']} held-out images, sigma {numbers['sigma']:g}, alpha "
        f"{numbers['alpha']:g}; of every image {numbers['num_selection']} noisy copies choose the "
        f"class and N = {numbers['num_trials']:,} vote."
    )


def votes(figures: Mapping[str, Any]) -> str:
    """Return the table of the labels that are counted as votes."""
    header = ["labels", "evaluations", "fewer", "CPU", *HEADER]
    rows = [
        [row["name"], *_cost(row), f"{row['speed_seconds']:.1f}x", *_quality(row)]
        for row in figures["rows"]
        if row["sound"] and row["bound"] is None
    ]
    return markdown_table([header, *rows])


def audits(figures: Mapping[str, Any]) -> str:
    """Return the table of the labels that are audited, and of what they would get unaudited."""
    rows = [["labels", "K, bound", "evaluations", "fewer", *HEADER]]
    for row in figures["rows"]:
        if not row["sound"] or row["bound"] is not None:
            counted = f"{row['audits']:,}, {row['bound']}" if row["sound"] else "none: UNSOUND"
            rows.append([row["name"], counted, *_cost(row), *_quality(row)])
    return markdown_table(rows)


def radii(figures: Mapping[str, Any]) -> str:
    """Return the table of the largest radii that the bounds allow."""
    rows = [["N", "K", "votes alone", "stated bound", "audited bound"]]
    for row in figures["largest_radii"]:
        bounds = [f"{row[name]:.3f}" for name in ("votes", "stated", "audited")]
        rows.append([f"{row['trials']:,}", f"{row['audits']:,}", *bounds])
    return markdown_table(rows)


HEADER = [*(f"r = {r:g}" for r in RADII), "average radius", "other labels"]


def _cost(row: Mapping[str, Any]) -> list[str]:
    speed = "-" if row["speed"] is None else f"{row['speed']:.1f}x"
    return [f"{row['evaluations']:,.0f}", speed]


def _quality(row: Mapping[str, Any]) -> list[str]:
    certified = [f"{100 * value:.1f}" for value in row["certified"].values()]
    return [*certified, f"{row['average_radius']:.3f}", f"{100 * row['disagreement']:.1f}%"]


def markdown(figures: Mapping[str, Any]) -> str:
    """Return all tables of certified.json."""
    tables = (caption, votes, audits, radii)
    return "\n\n".join(table(figures) for table in tables)


TABLES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "certified-votes": ("certified.json", votes),
    "certified-audits": ("certified.json", audits),
    "certified-radii": ("certified.json", radii),
    "certified-long": ("long.json", votes),
    "certified-long-audits": ("long.json", audits),
    "certified-phantom": ("phantom.json", votes),
}
"""The tables that documents show, by name: a file in their folder, and what makes one of it."""


def tables_of_certificates(names: Set[str], folder: Path) -> dict[str, str]:
    """Return the tables of these names that are here, from folder/certified."""
    return {
        name: table(read_json(folder / "certified" / file))
        for name, (file, table) in TABLES.items()
        if name in names
    }


def section_of_certificates(folder: Path | None) -> list[str]:
    """Return the titled tables of certify.py if it has results in folder/certified."""
    if folder is None or not (path := folder / "certified" / "certified.json").exists():
        return []
    text = f"docs/certified.md says what the figures mean. {caption(figures := read_json(path))}"
    return ["## Certified robustness", text, *(t(figures) for t in (votes, audits, radii))]
