"""A student as a folder that needs nothing of ours: `pipeline/convert.py export`.

pipeline.py, model_index.json        what DiffusionPipeline.from_pretrained runs and reads
model/                               weights, configuration, and the class in one file
vae/                                 of a student of latents
README.md, images.png                the card, for people and the hub
model.pt2, model.onnx                the other forms, if asked for
"""

import importlib.util
from io import BytesIO
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import Tensor, nn

from data.files import new_file, read_json, write_json
from data.folder import one_line
from get.errors import InputError
from get.images import grid, to_uint8
from get.models import Student
from get.pipeline_get import GETPipeline
from pipeline.jobs.bundle import bundle
from pipeline.jobs.named_images import drawn, made, named

Form = Literal["torch", "onnx"]
STUDENT = {"get.models": "from diffusers.models.modeling_utils import ModelMixin as Student"}
TOLERANCE = 1e-4  # between a form and the model itself


def export(pipeline: GETPipeline, folder: Path, card: str) -> None:
    """Write the folder that diffusers loads, into one that exists.

    Args:
        pipeline: The student.
        folder: Where.
        card: The text of README.md.
    """
    pipeline.save_pretrained(folder)
    model = pipeline.model
    module = type(model).__module__
    name = f"modeling_{module.rpartition('.')[2]}"
    (folder / "model" / f"{name}.py").write_text(bundle(module))
    (folder / "pipeline.py").write_text(bundle("get.pipeline_get", STUDENT))
    index = read_json(folder / "model_index.json")
    index |= {"_class_name": ["pipeline", "GETPipeline"], "model": [name, type(model).__name__]}
    write_json(folder / "model_index.json", index)
    names = named(0, 32, None)
    images = to_uint8(made(pipeline, drawn(model, names, None), None, 0.0))
    with new_file(folder / "images.png") as path:
        grid(images, 8, scale=max(1, 64 // images.shape[-1])).save(path, format="png")
    (folder / "README.md").write_text(card)


class Fixed(nn.Module):
    """A student as a function of tensors alone: its number of iterations is fixed."""

    def __init__(self, model: Student, iterations: int | None) -> None:
        """Wrap a model; None takes its own number."""
        super().__init__()
        self.model, self.iterations = model, iterations

    def forward(self, noise: Tensor, labels: Tensor | None, z0: Tensor | None) -> Tensor:
        """Make images; None where the model takes none."""
        return self.model.images(noise, labels, iterations=self.iterations, z0=z0)


@torch.no_grad()
def write_form(pipeline: GETPipeline, folder: Path, form: Form, iterations: int | None) -> float:
    """Write a model as torch.export or ONNX for batches of any size, and run what was written.

    Its inputs are `noise`, then `labels` and `z0` (the start of the iteration) where the model
    takes them. Latents are not decoded.

    Returns:
        The largest difference of a pixel from the model itself.

    Raises:
        InputError: If packages for ONNX are missing, or the difference is above 1e-4.
    """
    if form == "onnx" and not all(map(importlib.util.find_spec, ("onnxscript", "onnxruntime"))):
        raise InputError(
            "expected onnxscript and onnxruntime to export ONNX, got none; "
            "pip install 'get-distillation[onnx]'"
        )
    model = pipeline.model.cpu().float()
    fixed = Fixed(model, iterations).eval()
    example, other = (drawn(model, named(seed, n, None), None) for seed, n in ((0, 3), (1, 5)))
    batch = torch.export.Dim("batch", min=1, max=65536)
    shapes = {k: None if v is None else {0: batch} for k, v in example._asdict().items()}
    program = torch.export.export(fixed, tuple(example), dynamic_shapes=shapes, strict=False)
    target = folder / {"torch": "model.pt2", "onnx": "model.onnx"}[form]
    expected, given = fixed(*other), {k: v for k, v in other._asdict().items() if v is not None}
    if form == "torch":
        buffer = BytesIO()  # torch's own writer of files aborts the process on a full disk
        torch.export.save(program, buffer)
        target.write_bytes(buffer.getbuffer())
        result = torch.export.load(target).module()(*other)
    else:
        import onnxruntime

        names = {"input_names": list(given), "output_names": ["images"]}
        onnx = torch.onnx.export(program, dynamo=True, verbose=False, **names)
        if onnx is None:
            raise RuntimeError("torch.onnx.export returned nothing")
        onnx.save(target)
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        result = torch.from_numpy(session.run(None, {k: v.numpy() for k, v in given.items()})[0])
    difference = float((result - expected).abs().max())
    if not difference <= TOLERANCE:
        raise InputError(
            f"expected {form} to make images within {TOLERANCE} of the model's, got {difference}; "
            "this version of torch does not export the model faithfully"
        )
    return difference


def publish(folder: Path, repo_id: str, *, private: bool, api: HfApi | None = None) -> None:
    """Upload a folder to the hub in one commit; the hub's client finds the token.

    Raises:
        InputError: If the hub refuses or does not answer.
    """
    api = api or HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        line = one_line(error)
        raise InputError(
            f"expected to publish {folder} as {repo_id}, got {type(error).__name__}: {line}; "
            "log in with `hf auth login`, then upload the folder with `hf upload`"
        ) from error
