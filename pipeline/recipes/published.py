"""Published trainings (locuslab/get, arXiv:2401.08639) and ours on ImageNet.

CIFAR-10 as published, from NVlabs EDM's VP teacher, 18 Heun steps, unquantised targets: AdamW at a
constant 1e-4, EMA 0.9999, 6 iterations from unit normal noise, weights 0.8^(6 - k). The ImageNet
trainings keep those settings. None of these was run here: FIGURES has what others report.
`python -m pipeline.recipes` prints them all, `python -m pipeline.plan NAME` what one would take.
"""

from dataclasses import dataclass, replace

from get.sizes import GET_SIZES, VIT_SIZES
from pipeline.recipes.architectures import Architecture, GETModel, ViTModel
from pipeline.recipes.recipe import RUNS, Images, Recipe
from pipeline.recipes.settings_make import PairsConfig
from pipeline.recipes.settings_train import TrainConfig


@dataclass(frozen=True)
class Figure:
    """What a training is expected to reach.

    Attributes:
        fid: FID; None if nobody has reported one.
        source: Who says so, or why nobody does.
    """

    fid: float | None
    source: str


def _cifar10(kind: str) -> PairsConfig:
    """1,000,000 pairs to train on and 5,000 held out."""
    return PairsConfig(
        teacher=f"edm-cifar10-32x32-{kind}-vp.pkl",
        output_dir=RUNS / "pairs" / f"cifar10-{kind}",
        num_pairs=1_005_000,
        pairs_per_shard=5000,
        teacher_batch_size=250,
        image_format="npy32",
        pack=250,
    )


_PAIRS = {
    "cifar10": _cifar10("uncond"),
    "cifar10-cond": _cifar10("cond"),
    # 18 Heun steps and 3,000,000 pairs as in github.com/mlvlab/CAF
    "imagenet64": replace(
        _cifar10("cond"),
        teacher="edm-imagenet-64x64-cond-adm.pkl",
        output_dir=RUNS / "pairs" / "imagenet64",
        num_pairs=3_005_000,
        image_format="npy",
    ),
    # that revision has safetensors; its scheduler is DDIM; 1.5 is the guidance of DiT's best FID
    "imagenet256-latent": replace(
        _cifar10("cond"),
        teacher="facebook/DiT-XL-2-256@refs/pr/1",
        output_dir=RUNS / "pairs" / "imagenet256-latent",
        num_inference_steps=50,
        guidance_scale=1.5,
        mixed_precision="bf16",
        image_format="npy",
    ),
}

_IMAGES = {
    "cifar10": Images((3, 32, 32), None),
    "cifar10-cond": Images((3, 32, 32), 10),
    "imagenet64": Images((3, 64, 64), 1000),
    "imagenet256-latent": Images((4, 32, 32), 1000),  # DiT's null label is no class of the pairs
}


def get_model(size: str) -> GETModel:
    """Return the shape of a published GET."""
    width, depth, heads, ratio = GET_SIZES[size]
    return GETModel(
        width=width,
        depth=depth,
        heads=heads,
        equilibrium_mlp_ratio=ratio,
        iterations=6,
        z0="normal",
        map="plain",
    )


def vit_model(size: str) -> ViTModel:
    """Return the shape of a published ViT with patches of 2 pixels."""
    width, depth, heads = VIT_SIZES[size]
    return ViTModel(width=width, depth=depth, heads=heads)


def as_published(config: TrainConfig) -> TrainConfig:
    """Return a training with the optimiser, the average and the loss of the published ones."""
    return replace(
        config,
        optimizer="adamw",
        learning_rate=1e-4,
        adam_beta2=0.999,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_grad_norm=None,
        ema_decay=0.9999,
        loss="l1",
        iterate_decay=0.8,
    )


def _student(
    name: str, model: Architecture, pairs: str = "cifar10", batch: int = 128
) -> TrainConfig:
    return as_published(
        TrainConfig(
            output_dir=RUNS / name,
            pairs=_PAIRS[pairs].output_dir,
            model=model,
            max_train_steps=800_000,
            global_batch_size=batch,
            checkpointing_steps=10_000,
            validation_steps=10_000,
            log_steps=100,
        )
    )


_MODELS: dict[str, Architecture] = {
    "cifar10-get-t": get_model("GET-T/2"),
    "cifar10-get-m": get_model("GET-M/2"),
    "cifar10-get-s": get_model("GET-S/2"),
    "cifar10-get-b": get_model("GET-B/2"),
    "cifar10-get-bplus": get_model("GET-B/2+"),
    **{f"cifar10-{size.lower()}": vit_model(size) for size in VIT_SIZES},
}
_BASE = _MODELS["cifar10-get-b"]

_STUDENTS = {
    "cifar10": {name: _student(name, model) for name, model in _MODELS.items()},
    "cifar10-cond": {
        "cifar10-cond-get-b": _student("cifar10-cond-get-b", _BASE, "cifar10-cond", 256)
    },
    # Patches of 4: 256 tokens, as everywhere above; patches of 2 would be 1,024, at over 4 times
    # the work and 16 times the attention.
    "imagenet64": {
        "imagenet64-get-b": _student(
            "imagenet64-get-b", replace(_BASE, patch_size=4), "imagenet64", 256
        )
    },
    "imagenet256-latent": {
        "imagenet256-latent-get-b": _student(
            "imagenet256-latent-get-b", _BASE, "imagenet256-latent", 256
        )
    },
}
_CIFAR10 = ("cifar10-train", "cifar10-val")  # everybody else's reference, and the paper's
_REFERENCES = {"cifar10": _CIFAR10, "cifar10-cond": _CIFAR10}
RECIPES = {
    name: Recipe(
        images=_IMAGES[name],
        pairs=pairs,
        students=_STUDENTS[name],
        references=_REFERENCES.get(name, ()),
    )
    for name, pairs in _PAIRS.items()
}

_STAT = "STAT.md of locuslab/get"
_OURS = "ours; not run, no figure"
FIGURES = {  # FID of 50,000 images in one call, against CIFAR-10's test set
    "cifar10-get-t": Figure(15.23, _STAT),
    "cifar10-get-m": Figure(10.81, _STAT),
    "cifar10-get-s": Figure(7.99, _STAT),
    "cifar10-get-b": Figure(7.39, _STAT),
    "cifar10-get-bplus": Figure(7.21, _STAT),
    "cifar10-cond-get-b": Figure(6.23, _STAT),
    "cifar10-vit-b": Figure(11.49, "table of arXiv:2401.08639 at second hand, not verified"),
    **{
        f"cifar10-vit-{size}": Figure(None, "published only in arXiv:2401.08639, not obtained")
        for size in ("s", "l")
    },
    "cifar10-vit-xl": Figure(None, "in locuslab/get's code, no figure known"),
    "imagenet64-get-b": Figure(None, _OURS),
    "imagenet256-latent-get-b": Figure(None, _OURS),
}
