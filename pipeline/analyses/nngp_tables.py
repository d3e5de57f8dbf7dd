"""What nngp.json says, as tables and as a plot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.jobs.plots import new_plot
from pipeline.jobs.tables import markdown

Result = dict[str, Any]


def of_limits(result: Result) -> str:
    """Return the error of every width and depth to the limit of both, and its band."""
    depths = list(result["limits"][0]["depth_errors"])
    header = ["phi", "width", "draws", *(f"depth {d}" for d in depths[:-1]), depths[-1], "band"]
    lines = [header]
    for part in result["limits"]:
        for row in part["widths"]:
            cells = [f"{row['depths'][d]['to_limit']:.4f}" for d in depths]
            band = f"{row['depths'][depths[-1]]['band']:.4f}"
            lines.append([part["activation"], f"{row['width']}", f"{row['draws']:,}", *cells, band])
        cells = [f"{part['depth_errors'][d]:.4f}" for d in depths]
        lines.append([part["activation"], "infinite", "-", *cells, "-"])
    return markdown(lines)


def of_normality(result: Result) -> str:
    """Return how normal outputs are at every width."""
    header = ["phi", "width", "excess kurtosis", "one output: p", "all outputs: p", "evaluations"]
    lines = [header]
    for part in result["limits"]:
        for row in part["widths"]:
            found = row["normality"]
            error = 2 * found["excess_kurtosis_error"]
            lines.append(
                [
                    part["activation"],
                    f"{row['width']}",
                    f"{found['excess_kurtosis']:.4f} ± {error:.4f}",
                    f"{found['one_output']['p']:.2g}",
                    f"{found['all_outputs']['p']:.2g}",
                    f"{row['evaluations']:.1f}",
                ]
            )
    return markdown(lines)


def of_contrast(result: Result) -> str:
    """Return the kurtosis of ordinary deep networks, measured and expected."""
    rows = result["contrast"]
    depths = list(dict.fromkeys(row["depth"] for row in rows))
    lines = [["width", *(f"depth {d}" for d in depths)]]
    for width in dict.fromkeys(row["width"] for row in rows):
        some = {row["depth"]: row for row in rows if row["width"] == width}
        cells = [f"{some[d]['excess_kurtosis']:.2g} ({some[d]['expected']:.2g})" for d in depths]
        lines.append([f"{width}", *cells])
    return markdown(lines)


def of_spectra(result: Result) -> str:
    """Return smallest eigenvalues: random sets, and the two degenerate cases."""
    lines = [["phi", "random sets: lowest", "median", "pair x, -x", "pair x, 2x"]]
    for part in result["spectra"]:
        cells = [
            f"{pair['smallest_eigenvalue']:.1e}"
            + (f" (singular: {', '.join(pair['degenerate'])})" if pair["degenerate"] else "")
            for pair in part["pairs"].values()
        ]
        lines.append([part["activation"], f"{part['lowest']:.4f}", f"{part['median']:.4f}", *cells])
    return markdown(lines)


def of_regression(result: Result) -> str:
    """Return what every kernel reaches on held-out images."""
    header = [
        "kernel",
        "s_w",
        "depth",
        "accuracy",
        "squared error",
        "log density",
        "equilibrium's gain",
    ]
    lines = [header]
    for row in result["regression"]["rows"]:
        name = row["activation"] + ("" if row["injected"] else ", ordinary")
        lines.append(
            [
                name,
                f"{row['weight_std']:.3g}",
                f"{row['depth'] or 'equilibrium'}",
                f"{row['accuracy']:.1%}",
                f"{row['squared_error']:.4f}",
                f"{row['log_density']:.2f}",
                "-"
                if row["depth"] is None
                else f"{row['equilibrium_gain']:.3f} ± {2 * row['equilibrium_gain_error']:.3f}",
            ]
        )
    return markdown(lines)


def of_finite_widths(result: Result) -> str:
    """Return how close finite networks with a trained readout are to the process."""
    lines = [["width", "accuracy", "difference from the process"]]
    for row in result["regression"]["finite_widths"]:
        lines.append([f"{row['width']}", f"{row['accuracy']:.1%}", f"{row['difference']:.3f}"])
    return markdown(lines)


def of_trained(result: Result) -> str:
    """Return what trained classifiers reach on the same images."""
    lines = [["classifier", "noise on training images", "parameters", "accuracy"]]
    for row in result["regression"]["trained"]:
        size = f"{row['parameters'] / 1e6:.3f} M"
        lines.append([row["kind"], f"{row['noise']:g}", size, f"{row['accuracy']:.1%}"])
    return markdown(lines)


TABLES: dict[str, Callable[[Result], str]] = {
    "nngp-limits": of_limits,
    "nngp-normality": of_normality,
    "nngp-contrast": of_contrast,
    "nngp-spectra": of_spectra,
    "nngp-regression": of_regression,
    "nngp-widths": of_finite_widths,
    "nngp-trained": of_trained,
}


def summary(result: Result) -> str:
    """Return all tables, for a terminal."""
    return "\n\n".join(table(result) for table in TABLES.values())


def plot(path: Path, result: Result) -> None:
    """Draw the errors against width and depth, the kurtosis, and the accuracies."""
    with new_plot(path, (15, 4.2), columns=3) as (_, axes):
        for i, part in enumerate(result["limits"]):
            name, colour = part["activation"], f"C{i}"
            widths = [row["width"] for row in part["widths"]]
            ends = [row["depths"]["equilibrium"] for row in part["widths"]]
            axes[0].plot(widths, [e["to_limit"] for e in ends], "o-", c=colour, label=name)
            axes[0].plot(widths, [e["band"] for e in ends], "--", c=colour, lw=0.8)
            depths = [d for d in part["depth_errors"] if d != "equilibrium"]
            axes[1].plot(
                [int(d) for d in depths],
                [part["depth_errors"][d] for d in depths],
                "--", c=colour, label=f"{name}, infinite width",
            )  # fmt: skip
            last = part["widths"][-1]
            axes[1].plot(
                [int(d) for d in depths],
                [last["depths"][d]["to_limit"] for d in depths],
                "o", c=colour, label=f"{name}, width {last['width']}",
            )  # fmt: skip
            found = [row["normality"] for row in part["widths"]]
            axes[2].errorbar(
                widths,
                [f["excess_kurtosis"] for f in found],
                [2 * f["excess_kurtosis_error"] for f in found],
                marker="o", c=colour, label=name,
            )  # fmt: skip
        titles = ("equilibria (dashed: 95 % band)", "finite depth", "normality")
        for axis, title in zip(axes, titles, strict=True):
            axis.set(title=title, yscale="log", ylabel="relative error to the limit of both")
            axis.legend(fontsize=7)
        axes[0].set(xlabel="width", xscale="log")
        axes[1].set(xlabel="depth")
        axes[2].set(xlabel="width", xscale="log", ylabel="excess kurtosis")
