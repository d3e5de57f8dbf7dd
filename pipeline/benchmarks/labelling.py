"""Label the noisy copies of every image in many ways, one image after the other, and keep them.

Every way sees the same noise, so differences between ways are no accident of the draws, and they
take turns, so that a change in the machine's speed meets all of them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import new_file
from get.equilibrium import Picard
from get.errors import InputError
from get.noise import draw, step_seed
from get.robustness import REFERENCE, Labelling, Model, SolveStart, label_copies
from pipeline.recipes.settings_classify import CertifyConfig

TWIN = "explicit"
FIXED, ADAPTIVE = "fixed 30", "adaptive 1e-3"


def ways(config: CertifyConfig) -> dict[str, Labelling]:
    """Return the ways of solving by name: the main ones, all, or those asked for.

    "fixed 30" is the baseline of the paper on serialised smoothing. Numbers after the other names
    are plain steps, or the relative residual at which Anderson's iteration ends.

    Raises:
        InputError: If there is no such way.
    """

    def steps(
        start: SolveStart, counts: tuple[int, ...], shifted: bool = False
    ) -> dict[str, Labelling]:
        name = {"injection": "truncated", "zeros": "from zeros"}.get(start, start)
        one = Labelling(start=start, solver=Picard(), max_steps=1, shifted=shifted)
        if start == "serial":
            one = replace(one, batch_size=config.chains)
        name += " shifted" if shifted else ""
        return {f"{name} {k}": replace(one, max_steps=k) for k in counts}

    table = {
        FIXED: Labelling(),
        ADAPTIVE: REFERENCE,
        **steps("injection", (1, 2, 3, 5)),
        **steps("zeros", (1, 3)),
        **steps("clean", (1, 3)),
        "clean 1e-3": Labelling(start="clean", tol=1e-3),
        **steps("serial", (1, 3)),
        "serial 1e-3": Labelling(start="serial", tol=1e-3, batch_size=config.chains),
    }
    if config.full or config.ways:
        table |= {
            "adaptive 1e-2": Labelling(tol=1e-2),
            **steps("injection", (4,)),
            **steps("zeros", (2,)),
            **steps("clean", (2,)),
            **steps("clean", (1, 2, 3), shifted=True),
            **steps("serial", (2,)),
            **steps("serial", (1, 2, 3), shifted=True),
            "serial shifted 1e-3": Labelling(
                start="serial", tol=1e-3, batch_size=config.chains, shifted=True
            ),
        }
    if unknown := [name for name in config.ways if name not in table]:
        raise InputError(f"expected ways among {', '.join(table)}, got {', '.join(unknown)}")
    if config.ways:
        return {name: table[name] for name in dict.fromkeys((FIXED, ADAPTIVE, *config.ways))}
    return table


class Labelled(NamedTuple):
    """What one way made of the noisy copies of one image.

    Attributes:
        labels: A class a copy, the copies of the selection first.
        evaluations: Evaluations of the map, for each copy.
        once: Those spent once an image.
        seconds: Wall time, and CPU time, which other work on the machine does not lengthen.
    """

    labels: Tensor
    evaluations: Tensor
    once: int
    seconds: tuple[float, float]


def label_images(
    model: Model,
    twin: Callable[[Tensor], Tensor] | None,
    images: Tensor,
    config: CertifyConfig,
    progress: Callable[[], None],
) -> Iterator[dict[str, Labelled]]:
    """Yield, for every image, its labels by the name of the way; those on disk are read.

    Args:
        model: The equilibrium classifier.
        twin: An explicit one, under the name "explicit".
        images: The images.
        config: Says how many copies, and where labels are kept.
        progress: Called after every image.
    """
    table: dict[str, tuple[Model, Labelling]] = {
        name: (model, how) for name, how in ways(config).items()
    }
    if twin is not None:
        table[TWIN] = twin, Labelling()
    for index, image in enumerate(images):
        path = config.output_dir / "labels" / f"{index:05}.safetensors"
        found = _read(path, table)
        if found is None:
            count = config.num_selection + config.num_trials
            noise, _ = draw(step_seed(config.seed, index), range(count), tuple(image.shape))
            noise = config.sigma * noise.to(image.device)
            found = {name: _label(one, image, noise, how) for name, (one, how) in table.items()}
            _write(path, found)
        progress()
        yield found


def _label(model: Model, image: Tensor, noise: Tensor, how: Labelling) -> Labelled:
    began, cpu = time.perf_counter(), time.process_time()
    result = label_copies(model, image, noise, how)
    labels, evaluations = result.labels.cpu(), result.evaluations.cpu()
    seconds = time.perf_counter() - began, time.process_time() - cpu
    return Labelled(labels, evaluations, result.once, seconds)


def _write(path: Path, found: Mapping[str, Labelled]) -> None:
    tensors: dict[str, Tensor] = {}
    for name, row in found.items():
        tensors[f"{name}/labels"] = row.labels.to(torch.int16)
        tensors[f"{name}/evaluations"] = row.evaluations.to(torch.int16)
        tensors[f"{name}/cost"] = torch.tensor([row.once, *row.seconds], dtype=torch.float64)
    with new_file(path) as temporary:
        save_file(tensors, temporary)


def _read(path: Path, names: Mapping[str, object]) -> dict[str, Labelled] | None:
    """Return what was kept of an image; None if there is nothing, or not all of it."""
    try:
        tensors = load_file(path)
        return {
            name: Labelled(
                tensors[f"{name}/labels"].long(),
                tensors[f"{name}/evaluations"].long(),
                int(tensors[f"{name}/cost"][0]),
                (float(tensors[f"{name}/cost"][1]), float(tensors[f"{name}/cost"][2])),
            )
            for name in names
        }
    except (OSError, SafetensorError, KeyError):
        return None
