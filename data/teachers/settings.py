"""How a teacher is run: the settings of its sampler and of precision and speed.

Both are recorded with the pairs and are part of the teacher's fingerprint. Settings at their
defaults are left out, so a setting added later changes no data set made before. Next: ode.py.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from get.errors import InputError

SamplerName = Literal["auto", "heun", "euler", "ddim", "dpmsolver++"]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Settings of the deterministic sampler.

    Attributes:
        steps: Noise levels. Heun's method needs 2 * steps - 1 network evaluations, the others
            one per step; a consistency model takes one step.
        name: "auto" is the teacher's own scheduler (EDM: Heun's method in float64); any other name
            replaces it by that method for the same parametrisation.
        guidance_scale: Classifier-free guidance of a transformer with a null label; 1 is none.
    """

    steps: int = 18
    name: SamplerName = "auto"
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.steps < 1:
            raise InputError(f"expected at least 1 sampler step, got {self.steps}")
        if self.name not in get_args(SamplerName):
            known = ", ".join(get_args(SamplerName))
            raise InputError(f"expected a sampler among {known}, got {self.name}")
        if not 1 <= self.guidance_scale < float("inf"):
            raise InputError(
                f"expected a guidance_scale of at least 1 (none), got {self.guidance_scale}"
            )

    def settings(self) -> dict[str, Any]:
        """Return `steps` and what differs from its default."""
        return {"steps": self.steps} | _changed(self)


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the network computes; the state between its evaluations keeps its precision.

    Attributes:
        mixed_precision: "bf16" evaluates the network under autocast, "no" in float32.
        compile: Evaluate it through `torch.compile`.
        memory_format: Layout of its convolution weights and inputs.
    """

    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"

    def settings(self) -> dict[str, Any]:
        """Return what differs from its default."""
        return _changed(self)


def _changed(settings: Sampler | Execution) -> dict[str, Any]:
    defaults = {field.name: field.default for field in fields(settings)}
    return {k: v for k, v in asdict(settings).items() if v != defaults[k]}
