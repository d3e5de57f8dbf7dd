"""A run to a result with averaged weights of another length, chosen after the training."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import new_folder, write_json
from get.errors import InputError
from get.power_functions import Fit, Profile, exponent, fit
from pipeline.jobs.averages import saved
from pipeline.jobs.checkpoints import latest

FAR = 0.05  # error of a profile from which on a remark says so


class Stored(NamedTuple):
    """A stored average.

    Attributes:
        profile: Its step and width.
        file: With all averages of that step.
        prefix: Of its tensors in there.
    """

    profile: Profile
    file: Path
    prefix: str


@dataclass(frozen=True, kw_only=True)
class EmaConversion:
    """Average the weights of a run over another length than it did.

    The run was trained with --ema_sigma_rel; what is written loads like the run.

    Attributes:
        run: The run folder, finished or not.
        sigma_rel: Width of the average as a share of the steps made; at most 12^-0.5.
        output_dir: The new folder.
    """

    run: Path
    sigma_rel: float
    output_dir: Path

    def __post_init__(self) -> None:
        """Refuse a width that no power function has."""
        if isinstance(self.sigma_rel, float):  # the command line has none to begin with
            exponent(self.sigma_rel)


def main(config: EmaConversion) -> None:
    """Write the run's result with the weights that an average of this width has.

    Raises:
        InputError: If the run has no averages, or they are damaged.
    """
    files, checkpoint = saved(config.run), latest(config.run)
    if not files or checkpoint is None:
        raise InputError(
            f"expected a run with averages/ and checkpoints/ in {config.run}, got none; train one "
            "with --ema_sigma_rel 0.05 0.10"
        )
    wanted = Profile(max(files), config.sigma_rel)
    try:
        stored = find(files)
        chosen = fit([x.profile for x in stored], wanted)
        weights = add_up(stored, chosen.coefficients)
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(
            f"expected whole averages in {config.run / 'averages'}, got {type(error).__name__}: "
            f"{str(error).splitlines()[0]}; delete the damaged file"
        ) from error
    with new_folder(config.output_dir) as folder:
        write_result(checkpoint, folder, weights)
        write_json(folder / "source.json", source_of(config, wanted, stored, chosen))
    far = "; a lower checkpointing_steps brings it closer" if chosen.error > FAR else ""
    print(
        f"{config.output_dir}: averages of {len(files)} steps added up to sigma_rel "
        f"{config.sigma_rel} at step {wanted.step}; error of the profile {chosen.error:.2%}{far}"
    )


def find(files: Mapping[int, Path]) -> list[Stored]:
    """Return the averages in files, by their steps."""
    stored = []
    for step, path in files.items():
        with safe_open(path, "pt") as file:
            widths = {key.split("/")[0] for key in list(file.keys())}
        stored += [Stored(Profile(step, float(x)), path, f"{x}/") for x in sorted(widths)]
    return stored


def add_up(stored: Sequence[Stored], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the sum of stored averages by the names of the parameters, a parameter at a time.

    Raises:
        ValueError: If they have not all the same parameters.
    """
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files = {x.file: stack.enter_context(safe_open(x.file, "pt")) for x in stored}
        keys = {path: list(file.keys()) for path, file in files.items()}
        names = [
            {key.removeprefix(x.prefix) for key in keys[x.file] if key.startswith(x.prefix)}
            for x in stored
        ]
        if any(found != names[0] for found in names):
            raise ValueError("averages of other parameters in some of the files")
        for name in sorted(names[0]):
            parts = [
                c * files[x.file].get_tensor(x.prefix + name).double()
                for x, c in zip(stored, coefficients, strict=True)
            ]
            weights[name] = torch.stack(parts).sum(0).float()
    return weights


def write_result(checkpoint: Path, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Copy the result in a checkpoint, with these weights in place of its own.

    Raises:
        InputError: If it has no weights of these names.
    """
    found = 0
    for source in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        name = source.relative_to(checkpoint)
        if name.parts[0] == "state":
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        own = load_file(source) if source.suffix == ".safetensors" else {}
        if own and own.keys() >= weights.keys():
            found += 1
            changed = {key: value.to(own[key].dtype) for key, value in weights.items()}
            save_file({**own, **changed}, folder / name, {"format": "pt"})
        else:
            shutil.copyfile(source, folder / name)
    if found != 1:
        raise InputError(
            f"expected the model of the averages in {checkpoint}, got {found} files with such "
            "weights; is averages/ of another run?"
        )


def source_of(
    config: EmaConversion, wanted: Profile, stored: Sequence[Stored], chosen: Fit
) -> dict[str, Any]:
    """Return where a result comes from."""
    return {
        "run": str(config.run),
        "step": wanted.step,
        "sigma_rel": wanted.sigma_rel,
        "profile_error": chosen.error,
        "averages": [
            {"step": x.profile.step, "sigma_rel": x.profile.sigma_rel, "coefficient": c}
            for x, c in zip(stored, chosen.coefficients, strict=True)
        ],
    }
