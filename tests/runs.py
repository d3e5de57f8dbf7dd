"""Small trainings by `train smoke`, which several tests stop and compare."""

import json
import shutil
from pathlib import Path

from .processes import At

STEPS, EVERY = 12, 4  # a checkpoint every so many steps
SMALL = (
    *("--max_train_steps", STEPS, "--checkpointing_steps", EVERY, "--validation_steps", EVERY),
    *("--model.width", 8, "--lr_warmup_steps", 2),
    *("--learning_rate", 2e-3, "--muon_learning_rate", 2e-2),
    *("--feature_network", None, "--real_images", None),
)
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def writing(step: int) -> At:
    """Return a moment at which a checkpoint is half written and those before it are whole.

    Checkpoints are written beside the next steps, so in a step nobody knows.
    """
    return At("os.mkdir", f"*/.checkpoint-{step}.*/state")


def contents(run: Path) -> dict[str, object]:
    """Return all that a run may end with, byte by byte; times are no part of it."""
    files: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        value: object = path.read_bytes()
        if path.name in ("state.json", "finished.json"):
            value = {**json.loads(path.read_text()), "seconds": None}
        files[str(path.relative_to(run))] = value
    own = ("run.json", "run.lock", "speed.jsonl")
    return {name: value for name, value in files.items() if name not in own}


def assert_same(run: Path, other: Path) -> None:
    assert (ours := contents(run)).keys() == (theirs := contents(other)).keys()
    assert [name for name in theirs if ours[name] != theirs[name]] == []


def assert_same_end(run: Path, other: Path) -> None:
    """Compare all but earlier checkpoints: a run that is stopped keeps those of other steps."""
    for folder in (run, other):
        for step in checkpoints(folder)[:-1]:
            shutil.rmtree(folder / "checkpoints" / f"checkpoint-{step}")
    assert_same(run, other)


def checkpoints(run: Path) -> list[int]:
    return sorted(int(p.name[11:]) for p in run.glob("checkpoints/checkpoint-*"))


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
