"""A page in the browser: seed, class and iterations, the student beside its teacher, time of each.

Needs the extra packages `pip install 'get-distillation[demo]'`. The noise of a seed is that of its
sample 0, as in sample.py.
"""

from pipeline import cli
from pipeline.recipes.measures import demos

if __name__ == "__main__":
    cli.check_arguments(demos, default="digits")


import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from data.teachers.teacher import Teacher
from get.errors import InputError
from get.images import grid, to_uint8
from get.pipeline_get import GETPipeline
from pipeline.jobs.named_images import Draws, Name, drawn, made
from pipeline.jobs.processes import local_device
from pipeline.jobs.students import load_pipeline
from pipeline.recipes.settings_measure import DemoConfig

SHOWN = 384  # pixels of a shown image at least


@dataclass(frozen=True)
class Demo:
    """What the page asks for.

    Attributes:
        pipeline: The student.
        teacher: Makes images of the same noise; None shows none.
    """

    pipeline: GETPipeline
    teacher: Teacher | None

    def __call__(
        self, seed: float, label: float | None, iterations: float | None, tol: float
    ) -> tuple[Image.Image, Image.Image | None, str]:
        """Return the student's image, the teacher's, and how long they took."""
        model = self.pipeline.model
        classes = None if model.num_classes is None else [int(label or 0)]
        draws = drawn(model, [Name(int(seed), 0, 0)], classes)
        steps = None if model.iterations is None else int(iterations or model.iterations)
        image, took = timed(lambda: made(self.pipeline, draws, steps, tol if steps else 0.0))
        said = f"student: {took * 1e3:.0f} ms"
        if self.teacher is None:
            return shown(image), None, said
        theirs, longer = timed(lambda: self.of_teacher(draws))
        said += f"; teacher: {longer * 1e3:.0f} ms, {longer / took:.0f} times as long"
        return shown(image), shown(theirs), said

    def of_teacher(self, draws: Draws) -> Tensor:
        """Return the teacher's image of the same noise and class."""
        assert self.teacher is not None
        return self.teacher(draws.noise, draws.labels).cpu()


def main(config: DemoConfig) -> None:
    """Open the page until Ctrl-C."""
    if find_spec("gradio") is None:
        raise InputError(
            "expected the package gradio, got none; pip install 'get-distillation[demo]'"
        )
    device = local_device()
    pipeline = load_pipeline(config.model, device)
    teacher = None if config.teacher is None else open_teacher(config.teacher, Sampler(), device)
    if teacher is not None and teacher.image_shape != pipeline.model.image_shape:
        raise InputError(
            f"expected a teacher of images {pipeline.model.image_shape} like the student's, got "
            f"{teacher.image_shape}; name its own teacher, or --teacher None"
        )
    app = build_app(Demo(pipeline, teacher))
    app.launch(server_port=config.port or None, quiet=True, prevent_thread_lock=True, share=False)
    print(f"demo {app.local_url}  (Ctrl-C ends it)", flush=True)
    with cli.Signals() as signals:
        while not signals.received:
            time.sleep(0.2)
        app.close()
        signals.exit(signals.received, "nothing has to be saved")


def build_app(demo: Demo) -> Any:
    """Return the page, a `gradio.Blocks`."""
    import gradio

    model = demo.pipeline.model
    with gradio.Blocks(title="GET", analytics_enabled=False) as app:
        gradio.Markdown(f"# {type(model).__name__}: one call against many")
        with gradio.Row():
            seed = gradio.Slider(0, 9999, value=0, step=1, label="seed")
            label = gradio.Slider(
                0, (model.num_classes or 1) - 1, value=0, step=1, label="class",
                visible=model.num_classes is not None,
            )  # fmt: skip
            iterations = gradio.Slider(
                1, 48, value=model.iterations or 1, step=1, label="iterations",
                visible=model.iterations is not None,
            )  # fmt: skip
            tol = gradio.Slider(
                0.0, 0.2, value=0.0, label="stops at this residual",
                visible=model.iterations is not None,
            )  # fmt: skip
        with gradio.Row():
            student = gradio.Image(label="student", type="pil", format="png")
            teacher = gradio.Image(
                label="teacher", type="pil", format="png", visible=demo.teacher is not None
            )
        times = gradio.Markdown()
        inputs, outputs = [seed, label, iterations, tol], [student, teacher, times]
        for control in inputs:
            control.release(demo.__call__, inputs, outputs, api_visibility="private")
        app.load(demo.__call__, inputs, outputs, api_name="make")
    return app


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return an image and the seconds that it took; the device has finished by then."""
    began = time.perf_counter()
    with torch.no_grad():
        image = call()
    return image, time.perf_counter() - began


def shown(images: Tensor) -> Image.Image:
    """Return an image, enlarged if it is small."""
    return grid(to_uint8(images), 1, scale=max(1, SHOWN // images.shape[-1]))


if __name__ == "__main__":
    cli.run(main, demos, default="digits")
