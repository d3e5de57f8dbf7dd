"""GET, the Generative Equilibrium Transformer (arXiv:2401.08639): noise to image in one call.

Injection blocks run once over the noise; their features drive a few weight-tied equilibrium
blocks that are iterated; coda blocks, if any, run once over the result.
`get/equilibrium/solve.py` holds the loop, `layers.py` the blocks, and `get/losses.py` the training
objective. The path of this module is written into saved pipelines.
"""

from functools import partial
from typing import NamedTuple, get_args

import torch
from diffusers.configuration_utils import register_to_config
from jaxtyping import Float, Int
from torch import Tensor, nn

from get.choices import MapForm, Start
from get.equilibrium import Apply, DeltaMemory, Select, Solution, Unrolled, fixed_point, recomputed
from get.errors import InputError
from get.models.checks import check_call, check_choices, check_shape, check_sizes
from get.models.layers import Block, Decode, Embed, initialise
from get.models.student import Equilibrium, Rollout, Student, Trajectory


class Problem(NamedTuple):
    """A fixed-point problem z = equilibrium_map(z, *inputs).

    Attributes:
        z0: Where the iteration starts.
        inputs: The injected features and their projections, one an equilibrium block.
    """

    z0: Float[Tensor, "batch tokens width"]
    inputs: tuple[Tensor, ...]


class GET(Student):
    """Generative Equilibrium Transformer.

    Args:
        image_size: Side of the square image in pixels.
        channels: Image channels.
        patch_size: Side of a patch in pixels; divides `image_size`.
        width: Channels of a token.
        depth: Injection blocks, run once.
        equilibrium_depth: Weight-tied blocks, run in every iteration.
        heads: Attention heads.
        mlp_ratio: Hidden width of the injection blocks' MLPs over `width`.
        equilibrium_mlp_ratio: The same for the equilibrium blocks; 0 is attention without an MLP.
        num_classes: Number of classes; None for an unconditional model.
        coda_depth: Blocks between the last iteration and the decoder, shaped like the injection
            blocks; 0 as published.
        iterations: Default number of iterations.
        z0: Where the iteration starts: at the injected features, at zeros, or at unit normal noise
            (locuslab/get's way; then the caller gives a generator or the tensor itself).
        map: "plain" iterates the blocks, z <- blocks(z), as published. It only ever adds to z, so
            it has no fixed point. "anchored" iterates z <- x + (blocks(z) - z), x the injected
            features: same parameters and cost, and it has one.
        select: Which iterate a call returns; locuslab/get evaluates with "lowest_residual".
    """

    iterations: int  # pyrefly: ignore[bad-override-mutable-attribute]  never None here
    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012  the names diffusers looks for
    _repeated_blocks = ["Block"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        patch_size: int = 2,
        width: int = 256,
        depth: int = 6,
        equilibrium_depth: int = 3,
        heads: int = 4,
        mlp_ratio: float = 4.0,
        equilibrium_mlp_ratio: float = 6.0,
        num_classes: int | None = None,
        coda_depth: int = 0,
        iterations: int = 6,
        z0: Start = "injection",
        map: MapForm = "anchored",
        select: Select = "last",
    ) -> None:
        """Build the model with published initial values; see the class for the arguments."""
        super().__init__()
        shape = image_size, channels, patch_size, width, heads, num_classes
        check_shape(*shape, mlp_ratio, equilibrium_mlp_ratio or mlp_ratio)
        check_sizes(("depth", depth, 0), ("equilibrium_depth", equilibrium_depth, 1))
        check_sizes(("coda_depth", coda_depth, 0), ("iterations", iterations, 1))
        check_choices(("z0", z0, get_args(Start)), ("map", map, get_args(MapForm)))
        check_choices(("select", select, ("last", "lowest_residual")))
        self.image_size, self.channels, self.num_classes = image_size, channels, num_classes
        self.patch_size, self.width, self.iterations = patch_size, width, iterations
        self.z0: Start = z0
        self.map: MapForm = map
        self.select: Select = select
        self.gradient_checkpointing = False
        self.embed = Embed(image_size, channels, patch_size, width, num_classes)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.injection = nn.Linear(width, 3 * width * equilibrium_depth, bias=False)
        self.equilibrium_blocks = nn.ModuleList(
            Block(width, heads, equilibrium_mlp_ratio) for _ in range(equilibrium_depth)
        )
        self.coda_blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(coda_depth))
        self.decode = Decode(width, patch_size, channels)
        initialise(self)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Tokens of an image and channels of a token: the state of one sample."""
        return (self.image_size // self.patch_size) ** 2, self.width

    @property
    def start_shape(self) -> tuple[int, int] | None:
        """Shape of the random start of one sample's iteration; None if `z0` is not "normal"."""
        return self.state_shape if self.z0 == "normal" else None

    def forward(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
        *,
        iterations: int | None = None,
        z0: Float[Tensor, "batch tokens width"] | None = None,
        generator: torch.Generator | None = None,
        tol: float = 0.0,
        delta: DeltaMemory | None = None,
    ) -> Float[Tensor, "batch channels side side"]:
        """Make images from noise.

        Args:
            noise: Unit normal noise.
            labels: Class indices; None exactly if the model is unconditional.
            iterations: Evaluations of the equilibrium blocks; None takes the config's.
            z0: Start of the iteration; None follows the config's policy.
            generator: Draws the start where the policy is "normal" and `z0` is None.
            tol: An image stops iterating at this relative residual; 0 never stops early.
            delta: Skips small changes in the equilibrium blocks; without gradients only.

        Returns:
            Images, nominally in [-1, 1], not clipped.

        Raises:
            InputError: If shapes or labels do not fit the model, or a start has to be drawn and
                there is no generator.
        """
        return self.image_of(self.solve(noise, labels, iterations, z0, generator, tol, delta).z)

    def trajectory(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
        *,
        iterations: int | None = None,
        z0: Float[Tensor, "batch tokens width"] | None = None,
        equilibrium: Equilibrium | None = None,
        rollout: Rollout | None = None,
    ) -> Trajectory:
        """Make the images that training looks at; see `Student.trajectory`.

        0 iterations, with an equilibrium, make the image of the converged state alone.
        """
        problem = self.problem(noise, labels, z0)
        if rollout is not None:
            problem = Problem(self._roll_out(problem, rollout), problem.inputs)
        f = partial(self.equilibrium_map, recompute=self.gradient_checkpointing)
        steps = self.iterations if iterations is None else iterations
        states, residual, adjoint = (), problem.z0.new_full((1,), torch.nan), None
        if steps or equilibrium is None:
            path = fixed_point(
                f,
                problem.z0,
                inputs=problem.inputs,
                gradient=Unrolled(checkpoint=self.gradient_checkpointing),
                max_steps=steps,
                select="last",
                keep_iterates=True,
            )
            states, residual = path.iterates, path.residual
        if equilibrium is not None:
            end = fixed_point(
                f,
                states[-1].detach() if states else problem.z0,
                inputs=problem.inputs,
                solver=equilibrium.solver,
                gradient=equilibrium.gradient,
                max_steps=equilibrium.max_steps,
                tol=equilibrium.tol,
                # an unrolled gradient is that of all steps, so it ends with the last one
                select="last" if isinstance(equilibrium.gradient, Unrolled) else "best",
                compact=True,
            )
            states, residual, adjoint = (*states, end.z), end.residual, end.adjoint
        images = torch.stack([self.image_of(z) for z in states])
        f, residual = self.equilibrium_map, residual.mean()
        return Trajectory(images, residual, states, f, problem.inputs, adjoint)

    def _roll_out(self, problem: Problem, rollout: Rollout) -> Tensor:
        """Return starts of which the rows of the rollout have iterated, without gradient."""
        with torch.no_grad():
            inputs = tuple(x[rollout.rows] for x in problem.inputs)
            z = problem.z0[rollout.rows]
            for _ in range(rollout.iterations):
                z = self.equilibrium_map(z, *inputs)
        return problem.z0.index_copy(0, rollout.rows, z)

    def solve(
        self,
        noise: Tensor,
        labels: Tensor | None,
        iterations: int | None,
        z0: Tensor | None,
        generator: torch.Generator | None,
        tol: float = 0.0,
        delta: DeltaMemory | None = None,
    ) -> Solution:
        """Run the injection blocks once and iterate the equilibrium map; no decoding."""
        problem = self.problem(noise, labels, z0, generator)
        recompute = self.gradient_checkpointing and delta is None
        return fixed_point(
            partial(self.equilibrium_map, recompute=recompute, apply=delta),
            problem.z0,
            inputs=problem.inputs,
            gradient=Unrolled(checkpoint=self.gradient_checkpointing),
            max_steps=self.iterations if iterations is None else iterations,
            tol=tol,
            select=self.select,
            compact=tol > 0,
            carry=delta,
        )

    def problem(
        self,
        noise: Float[Tensor, "batch channels side side"],
        labels: Int[Tensor, " batch"] | None = None,
        z0: Float[Tensor, "batch tokens width"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Problem:
        """Return what is to be solved for this noise: all that does not change in the iteration.

        `fixed_point(model.equilibrium_map, problem.z0, inputs=problem.inputs, ...)` solves it,
        and `model.image_of` makes images of the state found.
        """
        shape = self.channels, self.image_size, self.num_classes
        check_call(noise, labels, *shape, self.embed.patch.weight)
        x, label = self.embed(noise, labels)
        for block in self.blocks:
            x = self._part(block, x, label)
        if z0 is not None and z0.shape != x.shape:
            raise InputError(f"expected z0 of shape {tuple(x.shape)}, got {tuple(z0.shape)}")
        u = self.injection(x).chunk(len(self.equilibrium_blocks), dim=-1)
        if label is not None:
            u = [u_i + label.to(u_i.dtype) for u_i in u]
        return Problem(self._start(x, generator) if z0 is None else z0, (x, *u))

    def equilibrium_map(
        self, z: Tensor, x: Tensor, *u: Tensor, recompute: bool = False, apply: Apply | None = None
    ) -> Tensor:
        """Return f(z): the map whose fixed point is decoded; x and u are the injections.

        `recompute` keeps nothing but the input of each block for the backward pass; `apply` calls
        the parts of the blocks, as a `DeltaMemory` does.
        """
        out = z
        for block, u_i in zip(self.equilibrium_blocks, u, strict=True):
            out = recomputed(block, out, u_i) if recompute else block(out, u_i, apply)
        return out if self.map == "plain" else x + (out - z)

    def image_of(
        self, z: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch channels side side"]:
        """Make images of a state: through the coda and the decoder."""
        for block in self.coda_blocks:
            z = self._part(block, z)
        return self._part(self.decode, z)

    def compile_parts(self) -> None:
        """Compile what runs before, in and after an iteration, for any batch: samples leave it."""
        for name in ("problem", "equilibrium_map", "image_of"):
            setattr(self, name, torch.compile(getattr(self, name), fullgraph=True))

    def _part(self, part: nn.Module, *inputs: Tensor | None) -> Tensor:
        """Call a part of the model; with gradient checkpointing only its inputs are kept."""
        return recomputed(part, *inputs) if self.gradient_checkpointing else part(*inputs)

    def _start(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        match self.z0:
            case "injection":
                return x
            case "zeros":
                return torch.zeros_like(x)
        if not isinstance(generator, torch.Generator):
            raise InputError(
                f"expected a generator or z0, got {generator!r}; this model starts its iteration "
                'at random (z0="normal") and the caller says from where the numbers come'
            )
        z0 = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
        return z0.to(x.device)
