"""Look at a trained GET as an equilibrium: does its map have one, how fast, for every sample?

Writes diagnosis.json and diagnosis.png: relative residual and |z| against the iteration, spectral
radius of the Jacobian at the solution, and how the evaluations to convergence spread over samples.
benchmarks/diagnosis.py computes them; the FID against iterations is in evaluate.py.
"""

from pipeline import cli
from pipeline.recipes.measures import diagnoses

if __name__ == "__main__":
    cli.check_arguments(diagnoses, default="digits")


from typing import Any

from data.files import write_json
from get.errors import InputError
from get.models import GET
from pipeline.benchmarks.diagnosis import diagnose
from pipeline.jobs.plots import new_plot
from pipeline.jobs.processes import local_device
from pipeline.jobs.provenance import provenance
from pipeline.jobs.students import load_student, weights_hash
from pipeline.recipes.settings_measure import DiagnoseConfig


def main(config: DiagnoseConfig) -> None:
    """Diagnose a GET on fresh noise."""
    model = load_student(config.model, local_device())
    if not isinstance(model, GET):
        kind = type(model).__name__
        raise InputError(f"expected a GET in {config.model}, got a {kind}; it does not iterate")
    diagnosis = diagnose(model, config)
    path = config.output_dir / "diagnosis.json"
    write_json(path, {"model": weights_hash(config.model), **diagnosis, **provenance()})
    plot(config, diagnosis)
    last, radius = diagnosis["residual"][-1]["median"], diagnosis["spectral_radius"]["median"]
    convergence = diagnosis["convergence"]
    spent = ", ".join(f"{n} {c['evaluations']['median']:.0f}" for n, c in convergence.items())
    print(f"residual at iteration {config.iterations}: {last:.2e}; spectral radius {radius:.3f}")
    print(f"evaluations to a residual of {config.tol:g}: {spent}")
    print(f"diagnosis {path}, {path.with_suffix('.png')}")


def plot(config: DiagnoseConfig, diagnosis: dict[str, Any]) -> None:
    """Draw residual and |z| against the iteration, the spread over samples shaded."""
    names = {"residual": "relative residual", "size": "|z|"}
    with new_plot(config.output_dir / "diagnosis.png", (9, 3.5), columns=2) as (_, axes):
        for axis, (key, name) in zip(axes, names.items(), strict=True):
            rows = diagnosis[key]
            steps = range(1, len(rows) + 1)
            axis.plot(steps, [row["median"] for row in rows], label="median")
            low, high = ([row[k] for row in rows] for k in ("lowest", "highest"))
            axis.fill_between(steps, low, high, alpha=0.3, label="all samples")
            axis.axvline(diagnosis["trained_iterations"], ls=":", c="grey", label="as trained")
            axis.set(xlabel="iteration", ylabel=name, title=f"{config.model.name}: {name}")
        axes[0].set_yscale("log")
        axes[0].axhline(config.tol, ls="--", c="black", lw=0.8, label="tolerance")
        axes[0].legend()


if __name__ == "__main__":
    cli.run(main, diagnoses, default="digits")
