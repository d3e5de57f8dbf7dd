"""GETPipeline: the diffusers way to sample from a distilled model.

pipeline = GETPipeline.from_pretrained("runs/digits", use_safetensors=True)
images = pipeline(batch_size=4, class_labels=[0, 1, 2, 3], generator=generator).images
"""

import json
import os
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from get.errors import InputError
from get.images import to_pil, to_uint8
from get.models import Student
from get.models.checks import check_labels

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)  # types of class labels


class GETPipeline(DiffusionPipeline):
    """One-step generation with a GET, a ViT or another student.

    Args:
        model: The distilled model.
        vae: Decodes the images of a model that makes latents, scaled by `vae.config.scaling_factor`
            as diffusers does; None if the model makes images.
    """

    model_cpu_offload_seq = "model->vae"
    _optional_components = ["vae"]  # noqa: RUF012  diffusers' own
    model: Student
    vae: AutoencoderKL | None

    def __init__(self, model: Student, vae: AutoencoderKL | None = None) -> None:
        """Register the components.

        Raises:
            InputError: If the model is not a student, compiled or not.
        """
        if not isinstance(getattr(model, "_orig_mod", model), Student):
            raise InputError(
                f"expected a GET, a ViT or another Student as model, got {type(model).__name__}"
            )
        super().__init__()
        self.register_modules(model=model, vae=vae)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:  # Self; the type checker of the test run cannot read that here
        """Load a run, a checkpoint or an export, as diffusers does.

        Args:
            pretrained_model_name_or_path: The folder, or an id on the hub.
            **kwargs: As in `DiffusionPipeline.from_pretrained`.

        Raises:
            InputError: If a folder holds something else, or the weights do not fit.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.is_dir():
            index = folder / "model_index.json"
            found = json.loads(index.read_text()) if index.exists() else {}
            kind = found.get("_class_name", "no model_index.json")
            if kind not in ("GETPipeline", cls.__name__, ["pipeline", "GETPipeline"]):
                raise InputError(
                    f"expected a GETPipeline in {folder}, got {kind}; "
                    "name a run of train.py, one of its checkpoints or an export"
                )
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | list[int] | Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        iterations: int | None = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
        tol: float = 0.0,
    ) -> ImagePipelineOutput | tuple:
        """Make images in one call of the model.

        Args:
            batch_size: Number of images; taken from `latents` if those are given.
            class_labels: One class index for all images or one each; None lets a conditional
                model draw them from the generator, or each image's from its own generator.
            generator: Source of the noise, or one an image.
            latents: Unit normal noise of shape (batch, channels, side, side) to use instead.
            iterations: Number of iterations; None takes the model's own.
            output_type: "pil", "np" (NHWC in [0, 1]) or "pt" (NCHW in [0, 1]).
            return_dict: False returns a plain tuple.
            tol: An image stops iterating at this relative residual; 0 never stops early.

        Returns:
            `ImagePipelineOutput` with `images`, or a tuple of them.

        Raises:
            InputError: If an argument is not what is expected above.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError(f'expected output_type "pil", "np" or "pt", got {output_type!r}')
        # each of these walks over all modules, so once
        model, device, dtype = self.model, self._execution_device, self.model.dtype
        if latents is not None and not (isinstance(latents, Tensor) and latents.dim() == 4):
            found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise InputError(
                "expected latents as a tensor of shape (batch, "
                f"{model.channels}, {model.image_size}, {model.image_size}), got {found}; "
                "torch.from_numpy makes one of an array"
            )
        count = batch_size if latents is None else len(latents)
        if not isinstance(count, Integral) or isinstance(count, bool) or count < 1:
            raise InputError(f"expected a batch_size of at least 1, got {count!r}")
        if iterations is not None and (not isinstance(iterations, Integral) or iterations < 1):
            raise InputError(f"expected iterations of at least 1 or None, got {iterations!r}")
        if not isinstance(tol, int | float) or not tol >= 0:
            raise InputError(f"expected tol of at least 0, got {tol!r}; 0 never stops early")
        sources = generator if isinstance(generator, list) else [generator]
        if not all(g is None or isinstance(g, torch.Generator) for g in sources):
            raise InputError(
                f"expected a torch.Generator or a list of them, got {generator!r}; "
                "torch.Generator().manual_seed(0) is one"
            )
        if isinstance(generator, list) and len(generator) != count:
            raise InputError(
                f"expected {count} generators, got {len(generator)}; "
                "give one for all images or one each"
            )
        if latents is None:
            shape = (count, model.channels, model.image_size, model.image_size)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        noise = latents.to(device, dtype)
        labels = self._labels(class_labels, count, generator)
        labels = None if labels is None else labels.to(device)
        z0 = None
        if model.start_shape is not None:  # drawn after the noise
            shape = (count, *model.start_shape)
            z0 = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        # not model.images: `pipeline.model = torch.compile(pipeline.model)` compiles calls alone
        kind: type[Student] = type(getattr(model, "_orig_mod", model))
        made = kind.images(model, noise, labels, iterations=iterations, z0=z0, tol=tol)
        images: Any = self.to_images(made)
        if output_type == "pil":
            result = [to_pil(image) for image in to_uint8(images)]
        else:
            result = (images.float() / 2 + 0.5).clamp(0, 1).cpu()
            if output_type == "np":
                result = result.permute(0, 2, 3, 1).numpy()
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def to_images(self, made: Tensor) -> Tensor:
        """Return what the model has made as images in [-1, 1]: latents go through the VAE."""
        if self.vae is None:
            return made
        latents = made.to(self.vae.device, self.vae.dtype) / self.vae.config["scaling_factor"]
        return self.vae.decode(latents, return_dict=False)[0]

    def _labels(
        self,
        class_labels: int | list[int] | Tensor | None,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> Tensor | None:
        classes = self.model.num_classes
        if not classes:
            if class_labels is not None:
                raise InputError("expected no class_labels, got some; the model is unconditional")
            return None
        if class_labels is None:
            sources = generator if isinstance(generator, list) else [generator]
            each = (batch_size // len(sources),)
            drawn = [
                torch.randint(classes, each, generator=g, device=g.device if g else "cpu")
                for g in sources
            ]
            labels = torch.cat(drawn)
        else:
            try:
                labels = torch.as_tensor(class_labels)
            except (TypeError, ValueError):
                labels = None
            if labels is None or labels.dtype not in WHOLE:
                raise InputError(
                    f"expected class_labels as whole numbers, got {class_labels!r}; "
                    "give one for all images or one each"
                )
            labels = labels.to(torch.int64)
            labels = labels.expand(batch_size) if labels.dim() == 0 else labels
        if labels.shape != (batch_size,):
            raise InputError(
                f"expected {batch_size} class_labels, got {tuple(labels.shape)}; "
                "give one for all images or one each, and as many as batch_size"
            )
        check_labels(labels, classes)
        return labels
