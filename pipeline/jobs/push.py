"""Publish a data set of pairs on the hub, where training and webdataset readers find it.

What is true of a folder is true there: a record is never seen without its tar. So the tars go
first, in as many commits as the client makes of them; manifest, records and card follow in one.
The same command continues after an interruption and later adds new shards.
"""

import json
from dataclasses import asdict

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from data.derive import Whole
from data.folder import Folder, one_line
from data.manifest import Manifest, finished_shard, record_name, tar_name
from get.errors import InputError


def push(whole: Whole, repo_id: str, *, private: bool = False, api: HfApi | None = None) -> None:
    """Upload a data set; the hub's client finds the token, as in all its commands.

    Raises:
        InputError: If a tar is missing or was cut, or the hub refuses or does not answer.
    """
    store = whole.store
    if not isinstance(store, Folder):
        raise InputError(f"expected a local folder to publish, got {store}; copy it to one")
    for shard in range(len(whole.records)):
        if finished_shard(store.path, shard) is None:
            raise InputError(
                f"expected {store.place(tar_name(shard))} as its record says, got none or a part; "
                "run verify_pairs.py"
            )
    api = api or HfApi()
    small = ["manifest.json", *(record_name(shard) for shard in range(len(whole.records)))]
    try:
        api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=store.path,
            allow_patterns=[tar_name(shard) for shard in range(len(whole.records))],
            commit_message="Shards",
        )
        files = {name: store.read(name) for name in small}
        files["README.md"] = card(whole, repo_id).encode()
        api.create_commit(
            repo_id,
            [CommitOperationAdd(name, data) for name, data in files.items()],
            repo_type="dataset",
            commit_message="Manifest and records",
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        line = one_line(error)
        raise InputError(
            f"expected to publish {store} as {repo_id}, got {type(error).__name__}: {line}; "
            "log in with `hf auth login`, then run the same command again"
        ) from error
    print(f"{len(whole):,} pairs in {len(whole.records)} shards are published as {repo_id}")


def card(whole: Whole, repo_id: str) -> str:
    """Return the README.md of the data set."""
    manifest, size = whole.manifest, sum(record.bytes for record in whole.records)
    classes = "" if manifest.num_classes is None else f", {manifest.num_classes} classes"
    return f"""---
tags:
- webdataset
- distillation
size_categories:
- {_category(len(whole))}
---

# {repo_id.rpartition("/")[2]}

{len(whole):,} pairs of noise and the image that a diffusion model's ODE sampler makes of it, in
{len(whole.records)} shards, {size / 1e9:.3g} GB: shape {manifest.image_shape}{classes}, images as
{manifest.image_format}. {_origin(manifest)}

Each shard is a tar that any webdataset reader reads: `<index>.latent.npy` is the noise,
`<index>.image.png` or `.image.npy` the image, `<index>.cls` its class. Its `.json` has its SHA-256.

```json
{json.dumps(_shown(manifest), indent=2)}
```
"""


def _origin(manifest: Manifest) -> str:
    """Say in a sentence where the pairs come from."""
    if manifest.imported:
        return "Noise and labels were imported from another data set."
    if manifest.derived is None:
        return f"Seed {manifest.seed} and its index decide the noise and class of a pair."
    seeds = sorted({source["seed"] for source in manifest.derived["sources"]})
    return (
        f"They are chosen from data sets of seeds {', '.join(map(str, seeds))}; the records say "
        "which index each pair had there."
    )


def _shown(manifest: Manifest) -> dict[str, object]:
    """Return what the card shows of the manifest: no place of this machine."""
    return {k: v for k, v in asdict(manifest).items() if k not in ("vae", "derived")}


def _category(count: int) -> str:
    """Return the hub's word for a number of rows."""
    bounds = [(10**3, "1K"), (10**4, "10K"), (10**5, "100K"), (10**6, "1M"), (10**7, "10M")]
    below = "n<1K"
    for (bound, name), (_, following) in zip(bounds, [*bounds[1:], (0, "100M")], strict=True):
        if count >= bound:
            below = f"{name}<n<{following}"
    return below
