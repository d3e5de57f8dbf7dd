"""The card of trained weights: README.md for people, card.json with figures and hashes."""

import hashlib
import shlex
import sys
from pathlib import Path

from data.files import new_file, read_json, write_json
from get.errors import InputError
from pipeline.jobs.provenance import provenance
from pipeline.jobs.run import Run


def write_card(run: Run, title: str, description: str, figures: dict[str, float]) -> None:
    """Write the card of a finished run into its folder.

    Args:
        run: The run whose result is described.
        title: First line of README.md.
        description: What the weights are, in a sentence or two.
        figures: Measured values by name.
    """
    module = f"pipeline.{Path(sys.argv[0]).stem}"
    card = {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "seed": run.config.seed,
        "steps": run.config.max_train_steps,
        "global_batch_size": run.config.global_batch_size,
        "train_seconds": round(run.seconds),
        **figures,
        "sha256": {name: _hash(run.path / name) for name in run.published()},
        **(origin := provenance()),
    }
    table = "\n".join(f"| {name.replace('_', ' ')} | {value} |" for name, value in figures.items())
    text = f"""---
license: apache-2.0
library_name: diffusers
---

# {title}

{description}

    {card["command"]}

Seed {card["seed"]}, {card["steps"]} steps of {card["global_batch_size"]} in \
{card["train_seconds"]} s ({origin["hardware"]["cores"]} CPU cores). \
`card.json` has the versions and the hash of every file.

| figure | value |
|---|---|
{table}
"""
    with new_file(run.path / "README.md") as temporary:
        temporary.write_text(text)
    write_json(run.path / "card.json", card)  # last: a folder with a card is complete


def check_card(folder: Path) -> dict:
    """Return the card of a folder after comparing every hash in it.

    Raises:
        InputError: If a file is missing or not the one the card names.
    """
    card = read_json(folder / "card.json")
    for name, expected in card["sha256"].items():
        actual = _hash(folder / name) if (folder / name).is_file() else "no file"
        if actual != expected:
            raise InputError(
                f"expected {folder / name} with SHA-256 {expected} as in its card, got {actual}; "
                "fetch the folder again or train them again"
            )
    return card


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
