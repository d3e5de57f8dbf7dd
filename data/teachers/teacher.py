"""The teacher: a diffusion network and the sampler of its ODE, from noise (and label) to image.

`open.py` opens one from files; `data/writer.py` lets it write pairs.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from data.teachers.ode import OdeSampler
from data.teachers.points import Point, choose
from data.teachers.settings import Execution, Sampler
from get.errors import InputError

Call = Callable[[Any, Tensor, Tensor, Tensor | None], Tensor]
"""(network, its input, time of every sample, class indices) -> raw output, in its convention."""


class Teacher:
    """Noise (and label) to image or latent, deterministic.

    Attributes:
        network: The raw network.
        ode: What samples it.
        image_shape: Channels, height, width of noise and image.
        num_classes: Number of classes; None if unconditional.
        evaluations: Network evaluations per image.
        fingerprint: SHA-256 of all that decides the image: weights, configuration, settings.
        sampler: The sampler's settings.
        execution: Precision and speed.
        vae_source: Folder or hub id whose `vae/` decodes the teacher's latents; None if it makes
            images.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        call: Call,
        ode: OdeSampler,
        image_shape: tuple[int, int, int],
        num_classes: int | None,
        fingerprint: str,
        sampler: Sampler,
        execution: Execution = Execution(),  # noqa: B008  frozen
        vae_source: str | None = None,
    ) -> None:
        """Join a network to its sampler; arguments as the attributes, and how `call` runs it.

        With guidance, the label after the last class must be the network's null label.
        """
        last = execution.memory_format == "channels_last"
        self._format = torch.channels_last if last else torch.contiguous_format
        self.network = network.to(memory_format=self._format)
        self._run = torch.compile(self.network) if execution.compile else self.network
        self._call, self.ode = call, ode
        self.image_shape, self.num_classes = image_shape, num_classes
        self.sampler, self.execution = sampler, execution
        self.fingerprint, self.vae_source = fingerprint, vae_source
        self._guided = sampler.guidance_scale != 1
        self.evaluations = ode.evaluations * (2 if self._guided else 1)

    @torch.no_grad()
    def __call__(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return float32 images, nominally in [-1, 1], not clipped, of unit normal noise.

        Raises:
            InputError: If there are labels for an unconditional teacher, none for another, or
                labels of no class.
        """
        return self._sample(noise, labels, lambda x: None)

    def levels(self, count: int) -> tuple[float, ...]:
        """Return the noise levels of so many states that its sampler passes, evenly over its steps.

        Raises:
            InputError: If there are fewer between noise and image.
        """
        # rounded: other machines compute other last bits
        return tuple(float(f"{point.sigma:.6g}") for point in self._points(count))

    def _points(self, count: int) -> tuple[Point, ...]:
        passed = getattr(self.ode, "points", ()) if count else ()
        return choose(passed, count, f"{self.sampler.steps} steps of {self.sampler.name}")

    @torch.no_grad()
    def with_states(
        self,
        noise: Float[Tensor, "batch channels height width"],
        labels: Int[Tensor, " batch"] | None,
        count: int,
    ) -> tuple[
        Float[Tensor, "batch channels height width"],
        Float[Tensor, "batch count channels height width"],
    ]:
        """Return the images of a call, and float16 states on the way to them.

        Their noise levels are `levels(count)`; the network is not called more often for them.
        """
        inputs: list[Tensor] = []
        points = self._points(count)
        wanted, calls = {point.call for point in points}, itertools.count()

        def see(x: Tensor) -> None:
            if next(calls) in wanted:
                inputs.append(x)

        images = self._sample(noise, labels, see)
        scaled = (x * point.scale for x, point in zip(inputs, points, strict=True))
        return images, torch.stack([x.half() for x in scaled], 1)

    def _sample(
        self, noise: Tensor, labels: Tensor | None, see: Callable[[Tensor], object]
    ) -> Tensor:
        """Make images; `see` is shown the network's input in every call of the sampler."""
        self._check(labels)
        device = next(self.network.parameters(), noise).device
        labels = None if labels is None else labels.to(device)

        def predict(x: Tensor, time: Tensor) -> Tensor:
            see(x)
            if labels is None or not self._guided:
                return self._evaluate(x, time, labels)
            return self._guide(x, time, labels)

        return self.ode(predict, noise.to(device))

    def _check(self, labels: Tensor | None) -> None:
        if (labels is None) != (self.num_classes is None):
            expected, got = ("labels", "none") if labels is None else ("no labels", "some")
            raise InputError(f"expected {expected} for this teacher, got {got}")
        if labels is not None and self.num_classes is not None:
            low, high, last = *(int(bound) for bound in labels.aminmax()), self.num_classes - 1
            if not 0 <= low <= high <= last:
                raise InputError(f"expected labels from 0 to {last}, got {low} to {high}")

    def _evaluate(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        """Return the network's raw prediction, float32, without the learned variance after it."""
        bf16 = self.execution.mixed_precision == "bf16"
        x = x.to(torch.float32, memory_format=self._format)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            out = self._call(self._run, x, time, labels)
        return out[:, : x.shape[1]].float()

    def _guide(self, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction for the label, extrapolated from that for none (2207.12598)."""
        null = torch.full_like(labels, self.num_classes or 0)  # the label after the last class
        both = self._evaluate(x.repeat(2, 1, 1, 1), time.repeat(2), torch.cat([labels, null]))
        labelled, unlabelled = both.chunk(2)
        return unlabelled + self.sampler.guidance_scale * (labelled - unlabelled)


def refuse_guidance(sampler: Sampler, network: str) -> None:
    """Raise InputError if the settings ask for guidance; the network has no null label."""
    if sampler.guidance_scale != 1:
        raise InputError(
            f"expected guidance_scale 1 (none) for the {network}, got {sampler.guidance_scale}; "
            "it has no null label to guide away from"
        )


def fingerprint(settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of settings and weights; manifests of pairs hold it."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
