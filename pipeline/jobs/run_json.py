"""run.json: the settings of a run, the versions and hardware it began with, and earlier settings.

A run continues with the settings it began with, and with others only if that is allowed.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from data.files import read_json, write_json
from data.folder import without_secrets
from get.errors import InputError
from pipeline.jobs.checkpoints import latest
from pipeline.jobs.provenance import provenance
from pipeline.recipes.settings_make import TrainingConfig

# Settings that change neither what is computed nor in which order; a run may change them freely.
FREE = {
    *("output_dir", "pairs", "checkpointing_steps", "checkpoints_total_limit", "log_steps"),
    *("dataloader_num_workers", "overwrite_output_dir", "train_batch_size"),
    *("gradient_accumulation_steps", "gradient_checkpointing", "compile", "validation_steps"),
    *("feature_network", "real_images", "report_to", "pairs_cache", "skip_damaged_shards"),
    *("vae", "shard_memory", "profile_steps", "cuda_graphs"),
    *("allow_config_change", "check"),
}


def keep_settings(config: TrainingConfig, data: object) -> list[str]:
    """Write run.json, or compare it with these settings.

    Args:
        config: The settings; `output_dir` is the run.
        data: What the run learns from, as JSON.

    Returns:
        The differences, if they are allowed. run.json then has the new settings and, under
        `earlier`, the old ones with the last checkpoint they made. A finished run that is to
        train for longer becomes unfinished again.

    Raises:
        InputError: If the folder holds something else than a run, or settings differ that may not.
    """
    path = config.output_dir / "run.json"
    settings = _plain({**asdict(config), "data": data})
    if not path.exists():
        _refuse_others(config.output_dir)
        write_json(path, {"config": settings, **provenance()})
        return []
    written = read_json(path)
    before, now = flat(written["config"]), flat(settings)
    # A setting that is newer than the run had its default; one that is gone cannot be given.
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    before = _plain(defaults) | before
    different = [
        f"{name} was {before.get(name)!r}, is {value!r}"
        for name, value in now.items()
        if name.split(".")[0] not in FREE and before.get(name) != value
    ]
    if not different:
        return []
    if not config.allow_config_change:
        raise InputError(
            f"expected the settings of the run in {config.output_dir}, got: "
            f"{'; '.join(different)}; choose another output_dir, go on with "
            "--allow_config_change, or start afresh with --overwrite_output_dir"
        )
    newest = latest(config.output_dir)
    if newest is not None and before.get("ema_sigma_rel") != now["ema_sigma_rel"]:
        raise InputError(
            f"expected ema_sigma_rel {before.get('ema_sigma_rel')} as from the first step on, got "
            f"{now['ema_sigma_rel']}; an average over all steps cannot begin later: start afresh "
            "with --overwrite_output_dir, or in another output_dir"
        )
    change = {"until": newest.name if newest else None, "config": written["config"]}
    earlier = [*written.get("earlier", []), change]
    done = config.output_dir / "finished.json"
    if done.exists() and read_json(done)["steps"] < config.max_train_steps:
        done.unlink()  # before run.json: after it the settings are equal and nobody comes here
    write_json(path, {"config": settings, "earlier": earlier, **provenance()})
    return different


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON gives them back, without passwords and tokens of addresses."""
    return json.loads(without_secrets(json.dumps(settings, default=str)))


def recorded(config: TrainingConfig, name: str) -> Any:
    """Return a setting of the run that would be continued; None if it would be a new run."""
    path = config.output_dir / "run.json"
    if config.overwrite_output_dir or not path.exists():
        return None
    return read_json(path)["config"].get(name)


def _refuse_others(folder: Path) -> None:
    """Raise InputError if a folder without run.json is not empty."""
    ours = "run.lock", ".run.json."  # the latter is left by a job that was killed
    foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith(ours))
    if foreign:
        raise InputError(
            f"expected an empty folder or a run in {folder}, got {', '.join(foreign)}; "
            "choose another output_dir"
        )


def flat(settings: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name, without passwords and tokens of addresses."""
    dotted = {}
    for name, value in settings.items():
        value = without_secrets(value) if isinstance(value, str) else value
        nested = isinstance(value, dict)
        dotted |= flat(value, f"{within}{name}.") if nested else {f"{within}{name}": value}
    return dotted
