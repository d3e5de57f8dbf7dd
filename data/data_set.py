"""A data set that is written to: any number of jobs create it, or join those that did."""

from pathlib import Path

from data.files import write_json
from data.lock import locked
from data.manifest import Manifest, lock_path, read_manifest
from data.store import Source
from get.errors import InputError

OTHERS = "run.json", "model_index.json", "sample.json"  # of trainings, models, images


def open_data_set(folder: Path, manifest: Manifest) -> None:
    """Create a data set, or check that the one in `folder` was made with the same settings.

    Any number of writers may call this at the same time: the first one creates the manifest, the
    others compare theirs with it.

    Raises:
        InputError: If the settings differ (the message lists the differences), or the folder is
            that of a training, a model or a command that makes images.
    """
    path = folder / "manifest.json"
    if not path.exists():
        if found := [name for name in OTHERS if (folder / name).exists()]:
            raise InputError(
                f"expected an empty folder or pairs in {folder}, got another command's result "
                f"({', '.join(found)}); choose another output_dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        with locked(lock_path(folder, "manifest.json")):
            if not path.exists():
                write_json(path, manifest.as_json())
                return
    check_same(folder, manifest)


def check_same(place: Source, manifest: Manifest) -> None:
    """Raise InputError if the data set at a place was made with other settings."""
    if different := read_manifest(place).differences(manifest):
        raise InputError(
            f"expected the settings of the pairs in {place}, got: {'; '.join(different)}; "
            "choose another output_dir"
        )
