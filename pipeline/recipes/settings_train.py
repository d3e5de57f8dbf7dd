"""The settings of a training of a student, whose shape is in architectures.py."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from get.errors import InputError
from pipeline.recipes.architectures import Architecture, GETModel
from pipeline.recipes.settings_make import TrainingConfig, positive, within


@dataclass(frozen=True, kw_only=True)
class TrainConfig(TrainingConfig):
    """Distil pairs into a one-step student.

    Attributes:
        pairs: Where the pairs lie: a folder, an http(s) or fsspec address, or `pipe:COMMAND {}`
            (see data/store.py). Several are mixed in every batch; the first one's manifest is in
            the model card.
        pairs_weights: Weights of several data sets: how much of every batch each of them gives,
            to whole pairs. None given, each gives the same.
        pairs_cache: Folder that keeps shards read from elsewhere; it needs the room of them all.
        skip_damaged_shards: Read other shards in place of damaged or missing ones, and count them;
            without, the first stops the training.
        shuffle: "fine" mixes many more shards in a batch than "shards", for data sets in a bad
            order: up to 64 streams, which change their shards one after the other.
        shard_memory: GiB of decoded shards in a process and its loader workers together. None is
            1 for each process that reads, or what a step needs. The order does not depend on it.
        vae: Folder or hub id whose `vae/` decodes the pairs if they are latents. None takes what
            the pairs name if it is a local folder or the teacher of a recipe.
        model: The student's shape.
        init_from: A run of train.py, one of its checkpoints, or what convert.py makes of one of
            locuslab/get: its weights, their average and, for the same optimiser, its moments are
            the start.
        holdout_shards: The last shards of every data set, kept from training for a validation loss.
        streams: Streams of the data order (data/order.py): shards that a batch is mixed of. None
            takes what run.json has, or for a new run a number that fits.
        train_batch_size: Samples a process and micro-step; None derives it from the global batch.
        gradient_accumulation_steps: Micro-steps an optimiser step.
        gradient_checkpointing: Recompute each iteration in the backward pass: less memory.
        mixed_precision: bf16 is for GPUs that have it; on a CPU it is 100 times slower.
        optimizer: "adamw", or "muon" for the matrices of the blocks and AdamW for the rest.
        muon_learning_rate: Peak learning rate of Muon.
        muon_weight_decay: Decoupled weight decay of Muon's matrices.
        muon_scaling: "spectral", or "match_rms_adamw" to use AdamW's learning rates for Muon.
        loss: Loss of each iterate: l1, l2, pseudo_huber, lpips, dists, or another of get/losses.py.
        iterate_decay: Weight of iterate k of T is iterate_decay^(T - k).
        gradient: "unrolled" goes through every iteration, with a loss on every iterate. "phantom"
            and "implicit" go on from there to the converged state, whose memory does not grow with
            the iterations, and put the last loss on it.
        unrolled_iterations: Iterations with a loss; None takes model.iterations, 0 (not for
            "unrolled") puts the only loss on the converged state.
        solver_max_steps: Evaluations "phantom" and "implicit" may spend on the converged state.
        solver_tol: Relative residual at which they stop.
        window_share: Share of every batch that begins with a rollout: plain iterations without
            gradient, before those that are trained. It keeps the later iterates good images, so
            that more iterations than trained do no harm. 0 is without.
        window_rollout: Fewest and most iterations of a rollout; one number is drawn in every step.
        frechet_weight: Weight of the Frechet distance between the student's images and others, in
            the features of `feature_network` (get/frechet.py); 0 is without. FID in that network
            then flatters the student: judge it in others.
        frechet_pixels: Scale of the pixels, shrunk to 8x8, that are compared together with these
            features, so that the student comes closer in other networks too; 0 is without.
        frechet_reference: What the others are: the teacher's images of the training pairs, or
            `real_images`, with which a student can come closer to them than its teacher.
        frechet_steps: It is used in the last so many steps, at small learning rates, after the
            schedule of the others has ended.
        frechet_images: Images over which moments of the student's features are averaged.
        jacobian_weight: Weight of the Jacobian penalty |df/dz|_F^2 / d; 0 is without.
        jacobian_probability: Share of the steps in which it is applied.
        compile: Run the model through torch.compile; weights keep their names.
        cuda_graphs: Record the step as CUDA graphs, for few images a GPU; not run on one yet.
        dataloader_num_workers: Processes that read and decode; 0 reads in the training process.
        validation_steps: Validation loss, a sample grid and FID every so many steps.
        feature_network: The network whose features that FID compares: the folder of a classifier
            or, without the Frechet distance, a name (docs/evaluation.md); None measures none.
        real_images: What it compares with: "digits", "photos", a folder of pictures or CIFAR-10.
        report_to: Trackers in addition to metrics.jsonl: tensorboard, wandb, or others that
            accelerate knows; their packages are installed separately.
    """

    pairs: str | Path | tuple[str, ...]
    pairs_weights: tuple[float, ...] = ()
    pairs_cache: Path | None = None
    skip_damaged_shards: bool = False
    shuffle: Literal["shards", "fine"] = "shards"
    shard_memory: float | None = None
    vae: str | None = None
    model: Architecture = field(default_factory=GETModel)
    init_from: Path | None = None
    holdout_shards: int = 1
    streams: int | None = None
    train_batch_size: int | None = None
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Literal["no", "bf16"] = "no"
    optimizer: Literal["adamw", "muon"] = "adamw"
    muon_learning_rate: float = 0.02
    muon_weight_decay: float = 0.0
    muon_scaling: Literal["spectral", "match_rms_adamw"] = "spectral"
    loss: str = "l1"
    iterate_decay: float = 0.5
    gradient: Literal["unrolled", "phantom", "implicit"] = "unrolled"
    unrolled_iterations: int | None = None
    solver_max_steps: int = 24
    solver_tol: float = 1e-3
    window_share: float = 0.0
    window_rollout: tuple[int, int] = (1, 4)
    frechet_weight: float = 0.0
    frechet_pixels: float = 0.0
    frechet_reference: Literal["teacher", "real"] = "teacher"
    frechet_steps: int = 1000
    frechet_images: int = 10_000
    jacobian_weight: float = 0.0
    jacobian_probability: float = 1.0
    compile: bool = False
    cuda_graphs: bool = False
    dataloader_num_workers: int = 0
    validation_steps: int = 500
    feature_network: Path | None = None
    real_images: str | None = None
    report_to: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str | Path, ...]:
        """The data sets."""
        return self.pairs if isinstance(self.pairs, tuple) else (self.pairs,)

    @property
    def frechet_collecting_steps(self) -> int:
        """Steps before those that use the Frechet distance: they collect moments."""
        return -(-self.frechet_images // self.global_batch_size)

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        super().__post_init__()
        positive(
            streams=self.streams,
            shard_memory=self.shard_memory,
            train_batch_size=self.train_batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            validation_steps=self.validation_steps,
            solver_max_steps=self.solver_max_steps,
            solver_tol=self.solver_tol,
            muon_learning_rate=self.muon_learning_rate,
            frechet_steps=self.frechet_steps,
            frechet_images=self.frechet_images,
            **{f"pairs_weights {weight}": weight for weight in self.pairs_weights},
        )
        within(
            0,
            holdout_shards=self.holdout_shards,
            dataloader_num_workers=self.dataloader_num_workers,
            iterate_decay=self.iterate_decay,
            frechet_weight=self.frechet_weight,
            frechet_pixels=self.frechet_pixels,
            muon_weight_decay=self.muon_weight_decay,
            jacobian_weight=self.jacobian_weight,
        )
        within(0, 1, jacobian_probability=self.jacobian_probability)
        if len(self.pairs_weights or self.sources) != len(self.sources) or not self.sources:
            raise InputError(
                f"expected pairs and pairs_weights, a weight for each data set, got "
                f"{len(self.sources)} data sets and {len(self.pairs_weights)} weights"
            )
        low, high = self.window_rollout
        if not (0 <= self.window_share <= 1 and 1 <= low <= high):
            raise InputError(
                "expected window_share from 0 to 1 and window_rollout of 1 or more, rising, got "
                f"{self.window_share} and {low} {high}"
            )
        least = 1 if self.gradient == "unrolled" else 0
        if self.unrolled_iterations is not None and self.unrolled_iterations < least:
            raise InputError(
                f"expected unrolled_iterations of at least {least} for gradient {self.gradient}, "
                f"got {self.unrolled_iterations}"
            )
        # The Frechet distance as a loss may compare with the teacher's images alone.
        network_alone = (
            self.feature_network is not None
            and self.frechet_weight > 0
            and self.frechet_reference == "teacher"
        )
        if (self.feature_network is None) != (self.real_images is None) and not network_alone:
            raise InputError(
                f"expected feature_network and real_images together, got {self.feature_network} "
                f"and {self.real_images}; FID needs both"
            )
        if self.frechet_weight and self.feature_network is None:
            raise InputError("expected feature_network for frechet_weight, got none; name one")
        steps = self.frechet_steps + self.frechet_collecting_steps
        if self.frechet_weight and steps > self.max_train_steps:
            raise InputError(
                f"expected max_train_steps of {steps} or more ({self.frechet_steps} with the "
                f"Frechet distance, before it {self.frechet_collecting_steps} that collect "
                f"moments), got {self.max_train_steps}; set frechet_steps or frechet_images lower"
            )
        if self.compile and self.jacobian_weight:  # compiled, nothing is differentiated twice
            raise InputError("expected no jacobian_weight with compile, got one; leave one out")
        if self.cuda_graphs and not (self.compile and self.gradient == "unrolled"):
            raise InputError(
                f"expected compile and gradient unrolled for cuda_graphs, got {self.compile} and "
                f"{self.gradient}; leave cuda_graphs out"
            )
