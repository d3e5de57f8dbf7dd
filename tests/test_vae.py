"""The VAE of latents comes from where the user or a recipe says, never from a data set alone."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.manifest import read_manifest
from get.errors import InputError
from pipeline.recipes import RECIPES
from pipeline.training import vae
from pipeline.training.data_sets import DataSet, check_alike
from pipeline.training.vae import find_vae

from .diffusers_files import save_dit
from .problems import Softsign
from .shards import manifest_of, write_pairs

SMOKE = RECIPES["smoke"].students["smoke"]
LATENTS = manifest_of(Softsign(channels=4))


def test_a_data_set_does_not_choose_what_is_downloaded(tmp_path: Path, train) -> None:
    pairs = write_pairs(tmp_path / "pairs", 5, teacher=Softsign(channels=4))
    manifest = json.loads((pairs / "manifest.json").read_text()) | {"vae": "evil/repo"}
    (pairs / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"expected --vae, .* they name 'evil/repo'"):
        find_vae(SMOKE, read_manifest(pairs))
    refused = train(tmp_path / "run", "--pairs", pairs)
    assert refused.code == 2
    assert "expected --vae" in refused.err.splitlines()[-1]


def test_a_vae_is_taken_from_the_user_from_a_folder_or_from_a_recipe(tmp_path, monkeypatch):
    assert find_vae(SMOKE, LATENTS) is None
    folder = str(save_dit(tmp_path / "dit"))
    for config, named in ((SMOKE, folder), (replace(SMOKE, vae=folder), "evil/repo")):
        found = find_vae(config, replace(LATENTS, vae=named))
        assert found is not None
        assert found.config["scaling_factor"] == 0.5
    asked = []
    monkeypatch.setattr(vae, "load_vae", asked.append)
    find_vae(SMOKE, replace(LATENTS, vae="facebook/DiT-XL-2-256@refs/pr/1"))
    assert asked == ["facebook/DiT-XL-2-256@refs/pr/1"]


def test_latents_of_several_vaes_are_not_decoded_by_the_first():
    sets = [
        DataSet(source=name, manifest=replace(LATENTS, vae=f"vae of {name}"), shards=1)
        for name in ("one", "two")
    ]
    with pytest.raises(InputError, match=r"expected --vae, because one and two name different"):
        check_alike(sets, vae=None)
    check_alike(sets, vae="that of both")
