"""What locuslab/get has left: its pairs as a data set of ours, its checkpoints as a pipeline.

`python -m pipeline.convert get_pairs OLD_DIR OUT` and `... get_checkpoint FILE OUT` call this.
Old files are read as tensors (data/torch_file.py); nothing in them is executed.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.files import new_folder, write_json
from data.locuslab_pairs import PairFile, find_files, in_sizes_of, read_pairs
from data.manifest import Manifest, open_data_set
from data.pairs import Pairs
from data.torch_file import Namespace, StoredTensor, open_torch_file
from data.writer import write_given
from get.errors import InputError
from get.models import GET, GET_SIZES, SIZES, VIT_SIZES, ViT, build
from get.models.locuslab import build_from, rename
from get.pipeline_get import GETPipeline
from pipeline import cli
from pipeline.config_convert import CheckpointConversion, PairsConversion
from pipeline.jobs.state import ADAMW, fit, save_moments

# ---------------------------------------------------------------------- pairs


def convert_pairs(config: PairsConversion) -> None:
    """Write the pairs of an old data set in whole shards, one old file in memory at a time.

    Raises:
        InputError: If the old data set is not whole, or too small for a shard.
    """
    files = find_files(config.folder)
    digest = hashlib.sha256()
    layouts: list[tuple[tuple[int, ...], int | None]] = []
    shards = left = 0
    with new_folder(config.output_dir) as folder:
        manifest: Manifest | None = None
        with cli.progress_bar(len(files), "get_pairs", "file") as bar:
            pieces = _pieces(files, digest, layouts, bar.update)
            for pairs in in_sizes_of(config.pairs_per_shard, pieces):
                manifest = manifest or _describe(config, *layouts[0])
                if len(pairs) < config.pairs_per_shard:
                    left = len(pairs)
                    break
                write_given(folder, shards, manifest, pairs)
                shards += 1
                del pairs  # a view of an old file, which goes before the next one is read
        if manifest is None or not shards:
            raise InputError(
                f"expected at least {config.pairs_per_shard} pairs in {config.folder}, got {left}; "
                "choose a smaller pairs_per_shard"
            )
        open_data_set(folder, replace(manifest, teacher=digest.hexdigest()))
    rest = f"; {left} more do not fill a shard and are left out" if left else ""
    total = shards * config.pairs_per_shard
    print(f"{config.output_dir}: {total:,} pairs in {shards} shards of {len(files)} files{rest}")


def _pieces(
    files: list[PairFile],
    digest: "hashlib._Hash",
    layouts: list[tuple[tuple[int, ...], int | None]],
    progress: Callable[[], object],
) -> Iterator[Pairs]:
    """Yield the pairs of every file; all are of one shape and either all or none labelled."""
    for file in files:
        digest.update(file.digest())
        pairs, num_classes = read_pairs(file)
        layouts.append((tuple(pairs.noise.shape[1:]), num_classes))
        first, found = layouts[0], layouts[-1]
        if found != first:
            raise InputError(
                f"expected images of {first[0]} and classes {first[1]} in {file.latent} as in the "
                f"files before, got {found[0]} and {found[1]}; keep data sets apart"
            )
        yield pairs
        del pairs  # before the next one is read
        progress()


def _describe(config: PairsConversion, shape: tuple[int, ...], num_classes: int | None) -> Manifest:
    """Return the manifest, with a teacher that is known once all files have been read.

    The teacher is the hash of what was imported: `verify_pairs --deep` finds no teacher of that
    name and says so, for nobody can make these pairs again. Sampler, evaluations and batch are
    what locuslab/get makes its pairs with. No seed names the stored noise; 0 is where evaluation
    draws the start of a GET that begins at random from.
    """
    channels, height, width = shape
    if config.image_format == "png" and channels not in (1, 3):
        raise InputError(
            f"expected 1 or 3 channels for image_format png, got {channels}; choose npy or npy32"
        )
    return Manifest(
        teacher="",
        sampler={"steps": 18},
        evaluations=35,
        seed=0,
        teacher_batch_size=250,
        image_shape=(channels, height, width),
        num_classes=num_classes,
        image_format=config.image_format,
        pairs_per_shard=config.pairs_per_shard,
        pack=config.pack,
    )


# ---------------------------------------------------------------------- checkpoints


def convert_checkpoint(config: CheckpointConversion) -> None:
    """Write a checkpoint as a pipeline that evaluates as the reference does, and `state/`.

    With `state/` the training goes on: `pipeline/train.py ... --init_from OUT`.

    Raises:
        InputError: If the file is no such checkpoint or its parts contradict each other.
    """
    with open_torch_file(config.file) as content:
        match content:
            case {"args": Namespace(attributes=args), "model": dict(), "ema": dict()}:
                pass
            case _:
                raise InputError(
                    f"expected args, model and ema in {config.file}, got something else; "
                    "it is no checkpoint of locuslab/get"
                )
        states = {name: _read_state(content[name], config.file) for name in ("model", "ema")}
        models = {name: _build(state, args, config.heads) for name, state in states.items()}
        moments = _read_moments(content.get("opt"), list(states["model"]), models["model"])
    with new_folder(config.output_dir) as folder:
        GETPipeline(models[config.weights]).save_pretrained(folder)
        write_json(folder / "source.json", _source(config, args))
        (state := folder / "state").mkdir()
        for name, model in models.items():
            save_file(model.state_dict(), state / f"{name}.safetensors")
        if moments:
            save_moments(state / "optimizer.safetensors", moments)
    model = models[config.weights]
    print(
        f"{config.output_dir}: {args.get('model')}, {config.weights} weights, "
        f"{model.num_classes or 'no'} classes, {'with' if moments else 'without'} the optimiser"
    )


def _read_state(stored: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    for name, tensor in stored.items():
        if not (isinstance(name, str) and isinstance(tensor, StoredTensor)):
            raise InputError(
                f"expected a state dict in {path}, got {type(tensor).__name__} at "
                f"{str(name)[:100]!r}; it is no checkpoint of locuslab/get"
            )
    return {name: tensor.read() for name, tensor in stored.items()}


def _build(state: Mapping[str, Tensor], args: dict[Any, Any], heads: int | None) -> GET | ViT:
    """Build the model of a state dict and compare it with what the arguments say."""
    size = str(args.get("model"))[:50]
    published = size in SIZES
    if published:
        heads = GET_SIZES[size][2] if size in GET_SIZES else VIT_SIZES[size.split("/")[0]][2]
    elif heads is None:
        raise InputError(
            f"expected a model among {', '.join(SIZES)}, got {size!r}; "
            "give --heads of your own size, its tensors tell the rest"
        )
    iterations = _iterations(args)
    model = build_from(state, heads=1, iterations=iterations)  # heads may not fit another size
    said = {
        "input_size": args.get("input_size", model.image_size),
        "cond": bool(args.get("cond", model.num_classes)),
    }
    found = {"input_size": model.image_size, "cond": bool(model.num_classes)}
    if model.num_classes:
        said["num_classes"] = args.get("num_classes", model.num_classes)
        found["num_classes"] = model.num_classes
    if published:
        with torch.device("meta"):
            named = build(
                size,
                image_size=model.image_size,
                channels=model.channels,
                num_classes=model.num_classes,
            )
        said, found = said | _shape(named), found | _shape(model)
    different = [f"{k} {found.get(k)} instead of {v}" for k, v in said.items() if found.get(k) != v]
    if different:
        raise InputError(
            f"expected tensors of {size} as the arguments say, got {', '.join(different)}; "
            "it is damaged, or trained with changed code"
        )
    return build_from(state, heads=heads, iterations=iterations)


def _shape(model: GET | ViT) -> dict[str, Any]:
    """Return the settings that weights depend on."""
    names = ("patch_size", "width", "depth", "mlp_ratio")
    more = ("equilibrium_depth", "equilibrium_mlp_ratio") if isinstance(model, GET) else ()
    return {"kind": type(model).__name__} | {name: model.config[name] for name in (*names, *more)}


def _iterations(args: dict[Any, Any]) -> int:
    """Return the iterations of an evaluation of the reference."""
    if (solver := args.get("f_solver", "fixed_point_iter")) != "fixed_point_iter":
        raise InputError(
            f"expected f_solver fixed_point_iter, got {str(solver)[:50]!r}; "
            "images of another solver cannot be made again"
        )
    match args:
        case {"eval_f_max_iter": int(count)} if count > 0:
            return count
        case {"f_max_iter": int(most)}:
            match args.get("eval_factor", 1.0):
                case int(factor) | float(factor) if (count := int(most * factor)) > 0:
                    return count
    raise InputError(
        "expected eval_f_max_iter or f_max_iter above 0 in the arguments, got neither; "
        "it is no checkpoint of locuslab/get"
    )


def _read_moments(stored: Any, names: list[str], model: GET | ViT) -> dict[int, dict[str, Tensor]]:
    """Return AdamW's moments by our numbers of the trained parameters; empty if there are none.

    The reference numbers its parameters in the order of its state dict, the frozen table of
    positions included.
    """
    match stored:
        case {"state": dict(state)} if state:
            pass
        case _:
            return {}
    ours = {name: p for name, p in model.named_parameters() if p.requires_grad}
    numbers = {name: number for number, name in enumerate(ours)}
    moments: dict[int, dict[str, Tensor]] = {}
    for index, values in state.items():
        known = isinstance(index, int) and 0 <= index < len(names) and isinstance(values, dict)
        if not (known and values.keys() == ADAMW and rename(names[index]) in numbers):
            raise InputError(
                "expected AdamW's step, exp_avg, exp_avg_sq of trained parameters, got others "
                f"at {str(index)[:50]!r}; it is damaged, or trained with changed code"
            )
        moments[numbers[rename(names[index])]] = {k: _number(v) for k, v in values.items()}
    if not fit(moments, list(ours.values())):
        raise InputError(
            "expected AdamW's moments of every trained parameter, got others; "
            "it is damaged, or trained with changed code"
        )
    return moments


def _number(value: object) -> Tensor:
    match value:
        case StoredTensor():
            return value.read()
        case int() | float():  # the step, before PyTorch 1.12
            return torch.tensor(float(value))
    raise InputError(f"expected a tensor in the optimiser's state, got {type(value).__name__}")


def _source(config: CheckpointConversion, args: dict[Any, Any]) -> dict[str, Any]:
    """Return where a pipeline comes from."""
    with config.file.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "format": "locuslab/get",
        "file": config.file.name,
        "sha256": sha256,
        "weights": config.weights,
        "args": {k: v for k, v in args.items() if isinstance(v, str | int | float | list)},
    }
