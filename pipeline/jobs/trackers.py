"""Trackers such as TensorBoard, which show what metrics.jsonl holds; all through accelerate."""

from dataclasses import asdict

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL.Image import Image

from get.errors import InputError
from pipeline.jobs.run_json import flat
from pipeline.recipes.settings_train import TrainConfig


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that trackers are known and installed; accelerate would leave others out silently.

    Raises:
        InputError: If one is not.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise InputError(f"expected report_to among {known}, got {name}")
        if name not in available:
            raise InputError(
                f"expected the package of tracker {name} to be installed, got none; "
                f"pip install {name}, or leave it out of --report_to"
            )


def start_trackers(accelerator: Accelerator, config: TrainConfig) -> None:
    """Open every tracker under the name of the run and give it the settings."""
    if config.report_to:
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in flat(asdict(config)).items()
        }
        accelerator.init_trackers(config.output_dir.name, config=plain)


def track_picture(accelerator: Accelerator, picture: Image, step: int) -> None:
    """Send a sample grid to the trackers that take pictures."""
    pixels = np.asarray(picture.convert("RGB"))[None]  # one picture, height, width, channels
    for tracker in accelerator.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **layout)
