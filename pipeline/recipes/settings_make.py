"""The settings of what makes teachers, feature networks, pairs and images.

All settings are frozen dataclasses that check themselves, with one default in one place. Recipes
fill them in by name; the command line overrides single fields. Nothing here imports torch.
"""

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Literal

from data.pair_settings import PairSettings
from get.choices import Body
from get.errors import InputError

GROUPS = 8  # of channels, in which a teacher's U-Net normalises
LRScheduler = Literal["constant", "constant_with_warmup", "linear", "cosine"]


def positive(**values: float | None) -> None:
    """Raise InputError unless every value is above 0 and finite; None is a setting not given."""
    for name, value in values.items():
        if value is not None and not 0 < value < inf:
            raise InputError(f"expected {name} above 0, got {value}")


def within(low: float, high: float = inf, **values: float) -> None:
    """Raise InputError unless every value is finite and from `low` to `high`."""
    for name, value in values.items():
        if not low <= value <= high or value == inf:
            to = " or more" if high == inf else f" to {high}"
            raise InputError(f"expected {name} of {low}{to}, got {value}")


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
        ema_ramp: The half-life of the average is at most this share of the steps made (0.05 in
            EDM); None lets the decay be the same from the start.
        ema_sigma_rel: Widths, as shares of the steps made, of power-function averages that are kept
            beside it, 0.05 0.10 in EDM2: any other can be made of them later (`convert ema`).
        checkpointing_steps: A checkpoint every so many steps.
        checkpoints_total_limit: Checkpoints kept; older ones go once a newer one is whole.
        log_steps: A line of metrics.jsonl every so many steps.
        profile_steps: The first and the last of the steps of which a trace is written, to profile/.
        allow_config_change: Go on with a run whose settings were others; run.json keeps both.
        overwrite_output_dir: Delete the run in output_dir and start afresh.
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
    ema_ramp: float | None = None
    ema_sigma_rel: tuple[float, ...] = ()
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    log_steps: int = 10
    profile_steps: tuple[int, int] | None = None
    allow_config_change: bool = False
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
            max_grad_norm=self.max_grad_norm,
            ema_ramp=self.ema_ramp,
        )
        within(0, lr_warmup_steps=self.lr_warmup_steps)
        unsigned(self.seed)
        for name in ("ema_decay", "adam_beta2"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise InputError(f"expected {name} in [0, 1), got {value}")
        first, last = self.profile_steps or (1, 1)
        if not 1 <= first <= last <= self.max_train_steps:
            raise InputError(
                f"expected profile_steps that rise, from 1 to {self.max_train_steps}, got {first} "
                f"and {last}"
            )
        widths = self.ema_sigma_rel
        if not all(0 < x <= 12**-0.5 for x in widths) or len(set(widths)) < len(widths):
            raise InputError(
                f"expected ema_sigma_rel of different numbers above 0, at most 0.2886, got {widths}"
            )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """Train a class-conditional diffusion teacher (UNet2DModel, EDM preconditioning).

    Attributes:
        train_data_dir: "digits", "photos", or a folder of pictures of one size, a sub-folder a
            class.
        block_out_channels: Channels of the U-Net's levels.
        attention: Put self-attention into the lowest level.
        muon_learning_rate: Peak learning rate of Muon for the matrices and kernels between the
            first and the last layer; None is AdamW for all weights.
        noise: Mean and standard deviation of ln(sigma) in training. Images of more than 8x8 pixels
            need more of the high levels, where their brightness is decided.
        sigma_data: Standard deviation of the images in [-1, 1]; None measures it.
        sigma_min: Lowest noise level of sampling.
        sigma_max: Highest noise level of sampling.
        check: Train nothing: check that output_dir holds a whole teacher, as its card says.
    """

    train_data_dir: str = "digits"
    block_out_channels: tuple[int, ...] = (24, 32)
    attention: bool = False
    muon_learning_rate: float | None = None
    noise: tuple[float, float] = (-1.2, 1.2)
    sigma_data: float | None = None
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    check: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        super().__post_init__()
        positive(
            muon_learning_rate=self.muon_learning_rate,
            sigma_data=self.sigma_data,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
            **{"noise (its deviation)": self.noise[1]},
        )
        if self.sigma_min >= self.sigma_max:
            raise InputError(
                f"expected sigma_max above sigma_min {self.sigma_min}, got {self.sigma_max}"
            )
        channels = self.block_out_channels
        if not channels or any(c < 1 or c % GROUPS for c in channels):
            raise InputError(
                f"expected block_out_channels that are multiples of {GROUPS}, got {channels}"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Train the classifier whose features FID uses.

    Attributes:
        train_data_dir: "digits", "photos", or a folder of pictures of one size, a sub-folder a
            class.
        body: What it is made of; see `get.metrics.classifier`.
        width: Channels of its first layer.
        features: Size of its feature vector.
        background: What moves in where a training image is shifted; None repeats its border.
    """

    train_data_dir: str = "digits"
    body: Body = "plain"
    width: int = 32
    features: int = 64
    background: float | None = None

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        positive(width=self.width, features=self.features)


@dataclass(frozen=True, kw_only=True)
class PairsConfig(PairSettings):
    """Let a teacher write noise/image pairs.

    Attributes:
        num_pairs: Pairs in all, a multiple of pairs_per_shard; more may be asked for later.
        task_index: Which share of the shards this job writes; None asks Slurm or torchrun.
        num_tasks: Shares in all; None asks Slurm or torchrun.
    """

    num_pairs: int
    task_index: int | None = None
    num_tasks: int | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that do not divide."""
        super().__post_init__()
        positive(num_pairs=self.num_pairs)
        if self.num_pairs % self.pairs_per_shard:
            raise InputError(
                f"expected num_pairs to be a multiple of pairs_per_shard {self.pairs_per_shard}, "
                f"got {self.num_pairs}; pairs come in whole shards"
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Make images with a distilled model.

    Attributes:
        model: A run, one of its checkpoints, or any folder with `model_index.json`.
        output_dir: Where the PNGs and the grid go.
        num_images: How many; image i is sample i of `seed`.
        seed: With the index of an image it names its noise and label.
        seeds: "0-63,100", for example, makes sample 0 of each of these seeds instead.
        class_labels: Classes to cycle through; None draws them.
        iterations: Iterations of a GET; None takes the model's default.
        tol: An image stops iterating at this relative residual; 0 never stops early.
        delta_threshold: Tokens whose inputs have all changed by at most this are skipped in the
            equilibrium blocks of a GET (docs/delta.md); 0 skips none.
        also: Files with all images besides the PNGs: npz (arr_0 and arr_1, for programs that
            compute FID), webdataset (tars with png and cls).
        strip: An image, by the number in its file name, whose iterates are shown side by side.
        interpolate: Two images, by number: ten are made from the first to the second.
        compile: Compile the model, which takes a minute and pays for thousands of images.
        cuda_graphs: Also record it as a CUDA graph, which pays for small batches. Not run yet.
        batch_size: Images at once; has no influence on them.
    """

    model: Path
    output_dir: Path
    num_images: int = 64
    seed: int = 0
    seeds: str | None = None
    class_labels: tuple[int, ...] | None = None
    iterations: int | None = None
    tol: float = 0.0
    delta_threshold: float = 0.0
    also: tuple[Literal["npz", "webdataset"], ...] = ()
    strip: int | None = None
    interpolate: tuple[int, int] | None = None
    compile: bool = False
    cuda_graphs: bool = False
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse numbers that cannot mean anything."""
        positive(num_images=self.num_images, batch_size=self.batch_size, iterations=self.iterations)
        within(0, delta_threshold=self.delta_threshold)
        for number in (self.seed, self.strip or 0, *(self.interpolate or ())):
            unsigned(number)
        if not 0 <= self.tol < 1:
            raise InputError(f"expected tol in [0, 1), got {self.tol}")
        if self.cuda_graphs and (self.tol or not self.compile):
            raise InputError(
                f"expected compile and no tol for cuda_graphs, got compile {self.compile} and tol "
                f"{self.tol}; leave cuda_graphs out"
            )
