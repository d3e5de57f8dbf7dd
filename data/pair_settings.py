"""The settings of a data set of pairs: everything that decides its bytes, and where it lies.

Importing this file is quick: it needs no torch. Next: manifest.py, which records them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

from data.files import check_local
from data.manifest import ImageFormat
from data.places import open_site
from data.teachers.settings import Execution, Sampler, SamplerName
from get.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PairSettings:
    """Everything that decides the bytes of a data set, and where it lies.

    Attributes:
        teacher: A folder or hub id in diffusers format, or an EDM checkpoint.
        output_dir: The data set's folder, or its address in an object store (s3://bucket/pairs);
            the same command writes only what is missing.
        pairs_per_shard: Pairs per tar file.
        teacher_batch_size: Images per call of the teacher; no batch crosses the end of a shard.
        num_inference_steps: Steps of the sampler (Heun: 2 n - 1 network evaluations).
        sampler: "auto" is what the teacher's own scheduler means.
        guidance_scale: Classifier-free guidance, for teachers that know a null label.
        seed: Seed and index decide the noise and label of a pair.
        image_format: "png" (8 bit), "npy" (float16, unquantised) or "npy32".
        pack: Pairs per member of the tar; stacks of hundreds are written and read much faster.
        trajectory_points: States of the sampler between noise and image that are kept with every
            pair, in float16; the teacher is not called more often for them.
        mixed_precision: Precision of the teacher's network.
        compile: Run the teacher's network through torch.compile.
        memory_format: Layout of the teacher's convolutions.
    """

    teacher: str
    output_dir: str | Path
    pairs_per_shard: int = 1024
    teacher_batch_size: int = 256
    num_inference_steps: int = 18
    sampler: SamplerName = "auto"
    guidance_scale: float = 1.0
    seed: int = 0
    image_format: ImageFormat = "png"
    pack: int = 1
    trajectory_points: int = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    compile: bool = False
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"

    def __post_init__(self) -> None:
        """Refuse settings that cannot mean anything."""
        if not isinstance(self.output_dir, (str, Path)):
            raise InputError(f"expected output_dir as a path or address, got {self.output_dir!r}")
        if isinstance(self.output_dir, Path):
            check_local(self.output_dir, "output_dir")
        open_site(self.output_dir)  # refuses systems that cannot be written to
        for name in ("pairs_per_shard", "teacher_batch_size", "num_inference_steps", "pack"):
            if (value := getattr(self, name)) < 1:
                raise InputError(f"expected {name} above 0, got {value}")
        if self.trajectory_points < 0:
            raise InputError(
                f"expected trajectory_points of 0 (none) or more, got {self.trajectory_points}"
            )
        if not 0 <= self.seed < 2**64:
            raise InputError(f"expected seed from 0 to 2^64 - 1, got {self.seed}")
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(f"expected {name} among {known}, got {getattr(self, name)}")
        if self.pack > 1 and self.teacher_batch_size % self.pack:
            raise InputError(
                f"expected pack to divide teacher_batch_size {self.teacher_batch_size}, "
                f"got {self.pack}; a stack is cut from one teacher batch"
            )

    def teacher_settings(self) -> tuple[Sampler, Execution]:
        """Return how the teacher is run."""
        sampler = Sampler(
            steps=self.num_inference_steps, name=self.sampler, guidance_scale=self.guidance_scale
        )
        execution = Execution(
            mixed_precision=self.mixed_precision,
            compile=self.compile,
            memory_format=self.memory_format,
        )
        return sampler, execution
