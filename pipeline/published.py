"""The published trainings (locuslab/get, arXiv:2401.08639), as rows for recipes.py.

CIFAR-10 from NVlabs EDM's VP teacher, 18 Heun steps, unquantised targets: AdamW at a constant 1e-4,
EMA 0.9999, 6 iterations from unit normal noise, weights 0.8^(6 - k). FID they report after 800,000
steps on 1,000,000 pairs (STAT.md there): T 15.23, M 10.81, S 7.99, B 7.39, B+ 7.21, conditional B
6.23. None of these was run here.
"""

from dataclasses import replace
from pathlib import Path

from get.models import GET_SIZES, VIT_SIZES
from pipeline.config import GETModel, PairsConfig, TrainConfig, ViTModel

RUNS = Path("runs")


def _pairs(kind: str) -> PairsConfig:
    """1,000,000 pairs to train on and 5,000 held out."""
    return PairsConfig(
        teacher=f"edm-cifar10-32x32-{kind}-vp.pkl",
        output_dir=RUNS / "pairs" / f"cifar10-{kind}",
        num_pairs=1_005_000,
        pairs_per_shard=5000,
        teacher_batch_size=250,
        image_format="npy32",
    )


PAIRS = {"cifar10": _pairs("uncond"), "cifar10-cond": _pairs("cond")}


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


def _student(name: str, model: GETModel | ViTModel) -> TrainConfig:
    return TrainConfig(
        output_dir=RUNS / name,
        pairs=PAIRS["cifar10"].output_dir,
        model=model,
        max_train_steps=800_000,
        global_batch_size=128,
        learning_rate=1e-4,
        lr_scheduler="constant",
        lr_warmup_steps=0,
        max_grad_norm=None,
        ema_decay=0.9999,
        iterate_decay=0.8,
        checkpointing_steps=10_000,
        validation_steps=10_000,
        log_steps=100,
    )


_MODELS: dict[str, GETModel | ViTModel] = {
    "cifar10-get-t": get_model("GET-T/2"),
    "cifar10-get-m": get_model("GET-M/2"),
    "cifar10-get-s": get_model("GET-S/2"),
    "cifar10-get-b": get_model("GET-B/2"),
    "cifar10-get-bplus": get_model("GET-B/2+"),
    **{f"cifar10-{size.lower()}": vit_model(size) for size in VIT_SIZES},
}

STUDENTS = {name: _student(name, model) for name, model in _MODELS.items()}
STUDENTS["cifar10-cond-get-b"] = replace(
    STUDENTS["cifar10-get-b"],
    output_dir=RUNS / "cifar10-cond-get-b",
    pairs=PAIRS["cifar10-cond"].output_dir,
    global_batch_size=256,
)
