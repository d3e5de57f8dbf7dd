"""The settings of what makes: frozen, checked when made, one default in one place.

Those of what measures are in config_measure.py, of what converts in config_convert.py.
`recipes.py` fills them in by name; the command line overrides single fields.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.pairs import ImageFormat
from data.teachers import SamplerName
from get.errors import InputError
from get.losses import PixelLoss
from get.models import Map, Start

LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]


def positive(**values: float) -> None:
    """Raise InputError unless every value is above 0."""
    for name, value in values.items():
        if value <= 0:
            raise InputError(f"expected {name} above 0, got {value}")


def unsigned(seed: int) -> None:
    """Raise InputError unless the seed fits 64 bits."""
    if not 0 <= seed < 2**64:
        raise InputError(f"expected seed from 0 to 2^64 - 1, got {seed}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training script shares.

    Attributes:
        output_dir: The run folder. The same command continues an unfinished run there.
        seed: Of initial weights, data order and noise.
        max_train_steps: Optimiser steps in all.
        global_batch_size: Samples an optimiser step, over all processes and accumulation.
        learning_rate: Peak learning rate of AdamW (no weight decay).
        adam_beta2: Decay of AdamW's second moment.
        lr_scheduler: Name of the schedule, as in diffusers.
        lr_warmup_steps: Steps of linear warm-up.
        max_grad_norm: Gradients are clipped to this norm; None does not clip.
        ema_decay: Decay of the averaged weights, which are the result.
        checkpointing_steps: A checkpoint every so many steps.
        checkpoints_total_limit: Checkpoints kept; older ones go once a newer one is whole.
        log_steps: A line of metrics.jsonl every so many steps.
        overwrite_output_dir: Delete what is in output_dir and start afresh.
    """

    output_dir: Path
    seed: int = 0
    max_train_steps: int = 1500
    global_batch_size: int = 128
    learning_rate: float = 2e-3
    adam_beta2: float = 0.999
    lr_scheduler: LRScheduler = "cosine"
    lr_warmup_steps: int = 100
    max_grad_norm: float | None = 1.0
    ema_decay: float = 0.99
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    log_steps: int = 10
    overwrite_output_dir: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        positive(
            max_train_steps=self.max_train_steps,
            global_batch_size=self.global_batch_size,
            learning_rate=self.learning_rate,
            checkpointing_steps=self.checkpointing_steps,
            checkpoints_total_limit=self.checkpoints_total_limit,
            log_steps=self.log_steps,
        )
        unsigned(self.seed)
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"expected ema_decay in [0, 1), got {self.ema_decay}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """Train a class-conditional diffusion teacher (UNet2DModel, EDM preconditioning).

    Attributes:
        train_data_dir: "digits", or a folder of pictures of one size, one sub-folder a class.
        block_out_channels: Channels of the U-Net's levels.
        layers_per_block: Residual blocks a level.
        attention: Put self-attention into the lowest level.
        sigma_data: Standard deviation of the images in [-1, 1]; None measures it.
        sigma_min: Lowest noise level of sampling.
        sigma_max: Highest noise level of sampling.
        p_mean: Mean of ln(sigma) in training.
        p_std: Standard deviation of ln(sigma) in training.
        check: Train nothing: check that output_dir holds a whole teacher, as its card says.
    """

    train_data_dir: str = "digits"
    block_out_channels: tuple[int, ...] = (24, 32)
    layers_per_block: int = 1
    attention: bool = False
    sigma_data: float | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    p_mean: float = -1.2
    p_std: float = 1.2
    check: bool = False


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Train the classifier whose features FID uses.

    Attributes:
        train_data_dir: "digits", or a folder of pictures of one size, one sub-folder a class.
        width: Channels of its first convolution.
        features: Size of its feature vector.
    """

    train_data_dir: str = "digits"
    width: int = 32
    features: int = 64


@dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Let a teacher write noise/image pairs.

    Attributes:
        teacher: A folder or hub id in diffusers format, or an EDM checkpoint.
        output_dir: The data set's folder; the same command writes only what is missing.
        num_pairs: Pairs in all, a multiple of pairs_per_shard; more may be asked for later.
        pairs_per_shard: Pairs a tar file.
        teacher_batch_size: Images the teacher makes at once.
        num_inference_steps: Steps of the sampler (Heun: 2 n - 1 network evaluations).
        sampler: "auto" is what the teacher's own scheduler means.
        guidance_scale: Classifier-free guidance, for teachers that know a null label.
        seed: With an index it names a pair's noise and label.
        image_format: "png" (8 bit), "npy" (float16, unquantised) or "npy32".
        pack: Pairs a member of the tar; stacks of hundreds are written and read much faster.
        mixed_precision: Precision of the teacher's network.
        compile: Run the teacher's network through torch.compile.
        memory_format: Layout of the teacher's convolutions.
        task_index: Which share of the shards this job writes; None asks Slurm or torchrun.
        num_tasks: Shares in all; None asks Slurm or torchrun.
    """

    teacher: str
    output_dir: Path
    num_pairs: int
    pairs_per_shard: int = 1024
    teacher_batch_size: int = 256
    num_inference_steps: int = 18
    sampler: SamplerName = "auto"
    guidance_scale: float = 1.0
    seed: int = 0
    image_format: ImageFormat = "png"
    pack: int = 1
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    task_index: int | None = None
    num_tasks: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        positive(
            num_pairs=self.num_pairs,
            pairs_per_shard=self.pairs_per_shard,
            teacher_batch_size=self.teacher_batch_size,
            pack=self.pack,
        )
        unsigned(self.seed)
        if self.num_pairs % self.pairs_per_shard:
            raise InputError(
                f"expected num_pairs to be a multiple of pairs_per_shard {self.pairs_per_shard}, "
                f"got {self.num_pairs}; pairs come in whole shards"
            )
        if self.pack > 1 and self.teacher_batch_size % self.pack:
            raise InputError(
                f"expected pack to divide teacher_batch_size {self.teacher_batch_size}, "
                f"got {self.pack}; a stack is cut from one teacher batch"
            )


@dataclass(frozen=True, kw_only=True)
class GETModel:
    """Shape of a GET; image size, channels and classes come from the pairs."""

    patch_size: int = 2
    width: int = 64
    depth: int = 1
    equilibrium_depth: int = 3
    heads: int = 2
    mlp_ratio: float = 4.0
    equilibrium_mlp_ratio: float = 4.0
    iterations: int = 3
    z0: Start = "injection"
    map: Map = "anchored"


@dataclass(frozen=True, kw_only=True)
class ViTModel:
    """Shape of a ViT; image size, channels and classes come from the pairs."""

    patch_size: int = 2
    width: int = 64
    depth: int = 4
    heads: int = 2
    mlp_ratio: float = 4.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """Distil pairs into a one-step student.

    Attributes:
        pairs: Where the pairs lie: a folder, an http(s) or fsspec address, or `pipe:COMMAND {}`
            (see data/store.py).
        pairs_cache: Folder that keeps shards read from elsewhere; it needs the room of them all.
        skip_damaged_shards: Read other shards in place of damaged or missing ones, and count them;
            without, the first stops the training.
        model: The student's shape.
        init_from: A run of train.py, one of its checkpoints, or what convert.py makes of one of
            locuslab/get: its weights, their average and AdamW's moments are the start.
        holdout_shards: The last shards, kept from training for a validation loss.
        streams: Logical streams of the data order; processes times loader workers divide it.
        train_batch_size: Samples a process and micro-step; None derives it from the global batch.
        gradient_accumulation_steps: Micro-steps an optimiser step.
        gradient_checkpointing: Recompute each iteration in the backward pass: less memory.
        mixed_precision: bf16 is for GPUs that have it; on a CPU it is 100 times slower.
        loss: Pixel loss of each iterate.
        iterate_decay: Weight of iterate k of T is iterate_decay^(T - k).
        gradient: "unrolled" goes through every iteration, with a loss on every iterate. "phantom"
            and "implicit" go on from there to the converged state without keeping anything and
            put the last loss on that.
        unrolled_iterations: Iterations gone through; None takes model.iterations, 0 (not for
            "unrolled") leaves the loss on the converged state alone.
        phantom_steps: Steps of "phantom" that carry the gradient.
        solver_max_steps: Evaluations "phantom" and "implicit" may spend on the converged state.
        solver_tol: Relative residual at which they stop.
        jacobian_weight: Weight of the Jacobian penalty |df/dz|_F^2 / d; 0 is without.
        jacobian_probability: Share of the steps in which it is applied.
        jacobian_draws: Random vectors it is estimated with.
        jacobian_ramp_steps: Steps over which its weight grows from 0.
        dataloader_num_workers: Processes that read and decode; 0 reads in the training process.
        validation_steps: Validation loss and a sample grid every so many steps.
    """

    pairs: str | Path
    pairs_cache: Path | None = None
    skip_damaged_shards: bool = False
    model: GETModel | ViTModel = field(default_factory=GETModel)
    init_from: Path | None = None
    holdout_shards: int = 1
    streams: int = 8
    train_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    loss: PixelLoss = "l1"
    iterate_decay: float = 0.5
    gradient: Literal["unrolled", "phantom", "implicit"] = "unrolled"
    unrolled_iterations: int | None = None
    phantom_steps: int = 1
    solver_max_steps: int = 24
    solver_tol: float = 1e-3
    jacobian_weight: float = 0.0
    jacobian_probability: float = 1.0
    jacobian_draws: int = 1
    jacobian_ramp_steps: int = 0
    dataloader_num_workers: int = 0
    validation_steps: int = 500

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        positive(
            streams=self.streams,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            validation_steps=self.validation_steps,
            phantom_steps=self.phantom_steps,
            solver_max_steps=self.solver_max_steps,
            solver_tol=self.solver_tol,
        )
        least = 1 if self.gradient == "unrolled" else 0
        if self.unrolled_iterations is not None and self.unrolled_iterations < least:
            raise InputError(
                f"expected unrolled_iterations of at least {least} for gradient {self.gradient}, "
                f"got {self.unrolled_iterations}"
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Make images with a distilled model.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        output_dir: Where the PNGs and the grid go.
        num_images: How many.
        seed: With the index of an image it names its noise and label.
        class_labels: Classes to cycle through; None draws them.
        iterations: Iterations of a GET; None takes the model's default.
        batch_size: Images at once; has no influence on them.
    """

    model: Path
    output_dir: Path
    num_images: int = 64
    seed: int = 0
    class_labels: tuple[int, ...] | None = None
    iterations: int | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        positive(num_images=self.num_images, batch_size=self.batch_size)
        unsigned(self.seed)
        if self.iterations is not None:
            positive(iterations=self.iterations)
