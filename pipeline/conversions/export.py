"""A student to a folder that needs diffusers only, torch.export, ONNX."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from data.files import new_folder
from pipeline.jobs.export import Form, export, publish, write_form
from pipeline.jobs.model_card import model_card
from pipeline.jobs.students import load_pipeline
from pipeline.recipes.settings_make import positive


@dataclass(frozen=True, kw_only=True)
class ExportConversion:
    """Turn a student into a folder that loads where this package is not installed.

    `DiffusionPipeline.from_pretrained(OUT, trust_remote_code=True)` loads it.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        output_dir: The new folder.
        also: Other forms: torch (torch.export, model.pt2), onnx (model.onnx).
        iterations: Iterations of a GET in the other forms; None takes the model's own.
        evaluation: What evaluate.py measured of it (a JSON), for the card.
        license: Licence of the weights in the hub's words, for the card.
        push_to_hub: "owner/name" of a repository of the hub that gets the folder.
        private: Create that repository for its owner alone.
    """

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    output_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT")]
    also: tuple[Form, ...] = ()
    iterations: int | None = None
    evaluation: Path | None = None
    license: str | None = None
    push_to_hub: str | None = None
    private: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        if self.iterations is not None:
            positive(iterations=self.iterations)


def main(config: ExportConversion) -> None:
    """Write a student as a folder of diffusers, and in the other forms."""
    pipeline = load_pipeline(config.model, torch.device("cpu"))
    title = config.push_to_hub or config.output_dir.name
    card = model_card(config.model, pipeline, title, config.license, config.evaluation)
    with new_folder(config.output_dir) as folder:
        export(pipeline, folder, card)
        for form in config.also:
            difference = write_form(pipeline, folder, form, config.iterations)
            print(f"{form}: its images differ by {difference:.1e} at most from the model's")
    print(f"{config.output_dir}: DiffusionPipeline.from_pretrained loads it")
    if config.push_to_hub is not None:
        publish(config.output_dir, config.push_to_hub, private=config.private)
        print(f"published as {config.push_to_hub}")
