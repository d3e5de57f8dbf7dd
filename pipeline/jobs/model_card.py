"""The card of an exported student: what it is, how to load it, what was measured of it."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from data.files import read_json
from get.errors import InputError
from get.pipeline_get import GETPipeline
from pipeline.jobs.students import weights_hash
from pipeline.jobs.tables import markdown


def model_card(
    source: Path, pipeline: GETPipeline, title: str, license: str | None, figures: Path | None
) -> str:
    """Return the README.md of a student.

    Args:
        source: Its run; what run.json says of the training is shown.
        pipeline: The student.
        title: First line; "owner/name" is shown in the commands too.
        license: The hub's word for a licence; None leaves it out.
        figures: What evaluate.py measured of it, a JSON.
    """
    model = pipeline.model
    name = type(model).__name__
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=license,
        tags=["distillation", "one-step", "deep-equilibrium" if name == "GET" else "transformer"],
    )
    labels = ", class_labels=[0, 1, 2, 3]" if model.num_classes else ""
    iterations = (
        f" It iterates {model.iterations} times; `iterations=` in the call changes that."
        if model.iterations
        else ""
    )
    classes = f" of {model.num_classes} classes" if model.num_classes else ""
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title.rpartition('/')[2]}",
        "![Images of seed 0](images.png)",
        f"A {name} of {model.num_parameters():,} parameters that makes images "
        f"({' x '.join(map(str, model.image_shape))}){classes} from noise in one call.{iterations}",
        f"""```python
import torch
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{title}", trust_remote_code=True)
generator = torch.Generator().manual_seed(0)
images = pipeline(batch_size=4{labels}, generator=generator).images
```""",
        "`trust_remote_code` runs `pipeline.py` and the class in `model/`, which need torch and "
        "diffusers only.",
        *([] if figures is None else measured(figures, source)),
        *training(source),
    ]
    return str(ModelCard("\n\n".join(parts))) + "\n"


def measured(figures: Path, source: Path) -> list[str]:
    """Return what evaluate.py measured, as a table.

    Raises:
        InputError: If it measured another model.
    """
    model = read_json(figures)
    found = model.get("inputs", {}).get("weights") if isinstance(model, dict) else None
    if found != (expected := weights_hash(source)):
        raise InputError(
            f"expected figures of the model in {source} (weights {expected[:12]}) in {figures}, "
            f"got those of {str(found)[:12]}; run evaluate.py on this model"
        )
    dial = model.get("by_iterations") or {"-": model}
    names = list(next(iter(dial.values()))["networks"])
    trained = model.get("trained_on")
    header = ["iterations", *(f"FD in {n}{' (trained on)' if n == trained else ''}" for n in names)]
    rows = [
        [k, *(f"{x['networks'][n]['fid']:.3g}" for n in names), f"{x['fdr']:.3g}"]
        for k, x in dial.items()
    ]
    inputs, hardware = model["inputs"], model["hardware"]
    return [
        "## Figures",
        markdown([[*header, "FDr"], *rows]),
        f"Frechet distances of {inputs['num_images']:,} images from the training images of "
        f"{Path(inputs['real_images']).name}; FDr is the mean over the networks of the distance "
        "divided by that of held-out real images. One seed, commit "
        f"{model['commit']}, {hardware['gpus'] or hardware['cores']} "
        f"{'GPUs' if hardware['gpus'] else 'CPU cores'}.",
    ]


def training(source: Path) -> list[str]:
    """Return how a run was trained; nothing if no run.json says it."""
    if not (source / "run.json").is_file():
        return []
    record = read_json(source / "run.json")
    config = record["config"]
    data = config.get("data", {})
    known = {
        "steps": config.get("max_train_steps"),
        "global batch": config.get("global_batch_size"),
        "learning rate": config.get("learning_rate"),
        "seed": config.get("seed"),
        "teacher": str(data.get("teacher", ""))[:12],
        "code": record.get("commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items()),
    }
    rows = [[k, str(v)] for k, v in known.items() if v not in (None, "")]
    return ["## Training", markdown([["setting", "value"], *rows])]
