"""What a student is: a network that makes an image from noise in one call.

`GET` and the `ViT` baseline are two; training, sampling and measuring know only `Student`, so a
new baseline architecture is a subclass of it and a recipe that names it (see CONTRIBUTING.md).
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor

from get.equilibrium import Adjoint, Anderson, DeltaMemory, Gradient, Solver
from get.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Equilibrium:
    """How training reaches the converged state and differentiates it.

    Attributes:
        gradient: How the solution is differentiated; memory does not grow with the solve.
        solver: Solver of the forward pass.
        max_steps: Evaluations it may spend.
        tol: Relative residual at which a sample stops.
    """

    gradient: Gradient
    solver: Solver = field(default_factory=Anderson)
    max_steps: int = 24
    tol: float = 1e-3


class Rollout(NamedTuple):
    """Samples of a batch that iterate without gradient before their trajectory begins.

    Attributes:
        rows: Their positions in the batch.
        iterations: How often they iterate.
    """

    rows: Int[Tensor, " rows"]
    iterations: int


class Trajectory(NamedTuple):
    """Every image a student makes on its way, for losses on iterates.

    A student that does not iterate makes one image and leaves the rest at its defaults.

    Attributes:
        images: The decoded iterates z_1 .. z_T, then the converged state if it was asked for.
        residual: Mean relative residual of the last state.
        states: The states themselves, (batch, tokens, width) each.
        map: The map that was iterated, called as `map(z, *inputs)`.
        inputs: Its inputs.
        adjoint: The backward solve, if the converged state has an implicit gradient.
    """

    images: Float[Tensor, "iterates batch channels side side"]
    residual: Float[Tensor, ""] | None = None
    states: tuple[Tensor, ...] = ()
    map: Callable[..., Tensor] | None = None
    inputs: tuple[Tensor, ...] = ()
    adjoint: Adjoint | None = None


class Student(ModelMixin, ConfigMixin):
    """A one-step generator of square images.

    A subclass sets the three attributes without a default and defines `forward(noise, labels)`.
    One that iterates sets `iterations` as well, overrides `start_shape` and `trajectory`, and its
    `forward` takes the arguments of `images`. The constructor carries `@register_to_config`, as in
    diffusers.

    Attributes:
        image_size: Side of the image in pixels.
        channels: Image channels.
        num_classes: Number of classes; None for an unconditional model.
        iterations: Default number of iterations; None for a network that does not iterate.
    """

    image_size: int
    channels: int
    num_classes: int | None
    iterations: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the subclass loadable: diffusers looks for its loader in the subclass's module."""
        super().__init_subclass__(**kwargs)
        vars(sys.modules[cls.__module__]).setdefault("ModelMixin", ModelMixin)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any
    ) -> Any:  # Self; the type checker of the test run cannot read that here
        """Load a model as diffusers does, but refuse weights that leave some to chance.

        Args:
            pretrained_model_name_or_path: A folder of `save_pretrained`, or an id on the hub.
            **kwargs: As in `ModelMixin.from_pretrained`.

        Raises:
            InputError: If weights are missing, left over or of other shapes than the model's.
        """
        path, told = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        try:
            model, info = super().from_pretrained(path, output_loading_info=True, **kwargs)
        except ValueError as error:
            if isinstance(error, InputError) or "expected shape" not in str(error):
                raise
            reason = str(error).split(". ")[0]
            raise InputError(
                f"expected weights of the shapes that config.json of {path} says, got: {reason}"
            ) from None
        missing, over = len(info["missing_keys"]), len(info["unexpected_keys"])
        if missing or over:
            raise InputError(
                f"expected all weights of a {cls.__name__} in {path} and no others, got {missing} "
                f"too few and {over} too many; load it by the class that config.json names"
            )
        return (model, info) if told else model

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of noise and image."""
        return self.channels, self.image_size, self.image_size

    @property
    def start_shape(self) -> tuple[int, ...] | None:
        """Shape of the random start of one sample's iteration; None if none is drawn."""
        return None

    def images(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
        *,
        iterations: int | None = None,
        z0: Float[Tensor, "batch ..."] | None = None,
        tol: float = 0.0,
        delta: DeltaMemory | None = None,
    ) -> Float[Tensor, "batch channels side side"]:
        """Make images, nominally in [-1, 1], not clipped.

        Args:
            noise: Unit normal noise.
            labels: Class indices; None exactly if the model is unconditional.
            iterations: Number of iterations; None takes the model's own.
            z0: Start of the iteration, of `start_shape`; None where none is drawn.
            tol: An image stops iterating at this relative residual; 0 never stops early.
            delta: Skips small changes from one iteration to the next; None skips nothing.

        Raises:
            InputError: If the arguments do not fit the model.
        """
        if self.iterations is not None:
            return self(noise, labels, iterations=iterations, z0=z0, tol=tol, delta=delta)
        if iterations is not None or z0 is not None or tol or delta is not None:
            raise InputError(
                f"expected a model that iterates for iterations, got a {type(self).__name__}; "
                "leave iterations, tol and delta out"
            )
        return self(noise, labels)

    def trajectory(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
        *,
        iterations: int | None = None,
        z0: Float[Tensor, "batch ..."] | None = None,
        equilibrium: Equilibrium | None = None,
        rollout: Rollout | None = None,
    ) -> Trajectory:
        """Make the images that training compares with the teacher's; arguments as in `images`.

        Args:
            noise: Unit normal noise.
            labels: Class indices; None exactly if the model is unconditional.
            iterations: Iterations differentiated, an image each; None takes the model's number.
            z0: Start of the iteration.
            equilibrium: How to go on to the converged state, which makes the last image; None
                ends before.
            rollout: Samples that begin later in their iteration; None lets all begin at `z0`.
        """
        return Trajectory(self.images(noise, labels, iterations=iterations, z0=z0)[None])

    def compile_parts(self) -> None:
        """Compile, in place, what is the same from one iteration to the next: here the blocks."""
        self.compile_repeated_blocks()
