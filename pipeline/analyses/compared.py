"""Means over seeds with their intervals, and paired differences between kinds of networks."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

Run = dict[str, Any]

# 97.5 % points of Student's t, by degrees of freedom; from there on, that of the normal
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
BETTER = {  # the figures that are compared, and whether more is better
    "accuracy": True,
    "minority_accuracy": True,
    "nc1": False,
    "spread": False,
    "nc2": False,
    "nc2_classifier": False,
    "nc3": False,
    "minority_cosine": False,
}


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and half width of the 95 % interval of the mean; None for a single value."""
    half = None
    if len(values) > 1:
        degrees = len(values) - 1
        quantile = STUDENT[degrees - 1] if degrees <= len(STUDENT) else 1.96
        half = quantile * stdev(values) / len(values) ** 0.5
    return {"mean": mean(values), "half": half}


def compare(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Return a row for every cell and kind: figures at the end, and beside the explicit twin.

    A difference is that between two trainings of one seed, which have the same images.
    """
    runs, rows = list(runs), []
    for cell in dict.fromkeys(run["cell"] for run in runs):
        some = [run for run in runs if run["cell"] == cell]
        kinds = dict.fromkeys(run["kind"] for run in some)
        twins = {run["seed"]: run for run in some if run["kind"] == "explicit"}
        rows += [_row([r for r in some if r["kind"] == kind], twins) for kind in kinds]
    return rows


def _row(seeds: list[Run], twins: dict[int, Run]) -> dict[str, Any]:
    first, last = seeds[0], [run["curve"][-1] for run in seeds]
    names = [name for name in first["curve"][-1] if name != "step"]
    row = {
        **{k: first[k] for k in ("cell", "source", "majorities", "ratio", "kind", "parameters")},
        "training_images": first["training_images"],
        "seeds": [run["seed"] for run in seeds],
        "terminal_steps": [run["terminal_step"] for run in seeds],
        "steps": last[0]["step"],
        "figures": {name: interval([end[name] for end in last]) for name in names},
    }
    pairs = [(run, twins[run["seed"]]) for run in seeds if run["seed"] in twins]
    if first["kind"] == "explicit" or not pairs:
        return row
    row["differences"] = {}
    for name, more in BETTER.items():
        if name in names:
            found = interval([a["curve"][-1][name] - b["curve"][-1][name] for a, b in pairs])
            row["differences"][name] = {**found, "better": _better(found, more)}
    return row


def _better(difference: dict[str, float | None], more: bool) -> str:
    """Say which network is better, if the interval of the difference leaves out zero."""
    middle, half = difference["mean"], difference["half"]
    if middle is None or half is None or abs(middle) <= half:
        return "neither"
    return "equilibrium" if (middle > 0) == more else "explicit"
