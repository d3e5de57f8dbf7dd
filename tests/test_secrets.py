"""Passwords and tokens in addresses are used and never shown or kept."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest

from data.folder import without_secrets
from data.order import Order
from data.store import open_store
from get.errors import InputError
from pipeline.jobs.run_json import flat, keep_settings
from pipeline.recipes import RECIPES

from .processes import Script, completed
from .shards import PAIRS, Quiet, serving

ADDRESS = "https://host:80/pairs?token=SECRET&x=SECRET#SECRET"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ADDRESS, "https://host:80/pairs?..."),
        ("s3://key:SECRET@bucket/pairs", "s3://...@bucket/pairs"),
        ("ftp://SECRET@host/a@b", "ftp://...@host/a@b"),
        ("pipe:curl 'https://u:SECRET@h/{}?sig=SECRET' -f", "pipe:curl 'https://...@h/{}?...' -f"),
        (json.dumps({"a": ADDRESS, "b": 1}), '{"a": "https://host:80/pairs?...", "b": 1}'),
        *((plain, plain) for plain in ("runs/a@b?c", "https://host/x@y", "pipe:cat {}", "")),
    ],
)
def test_secrets_are_cut_out_of_text_and_nothing_else_is(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


SOURCES = [
    ADDRESS,
    "file://SECRET:SECRET@/nowhere",
    "pipe:false https://u:SECRET@host/{}?SECRET",
    "pipe:echo no https://host/x?SECRET >&2; false {}",
    "HTTPS://user:SECRET@host/pairs",
    "nowhere://user:SECRET@host/pairs",
    "pipe:curl https://host/x?SECRET",
]


@pytest.mark.parametrize("source", SOURCES)
def test_no_message_about_a_source_has_its_secrets(source: str, monkeypatch) -> None:
    monkeypatch.setattr("data.remote.DELAYS", ())
    shown = []
    try:
        store = open_store(source)
        shown += [str(store), store.place("x")]
        with pytest.raises(InputError, match="got none"):
            Order(source=store, shards=0, pairs_per_shard=1, seed=0, streams=1, batch_size=1)
        store.read("x")
    except (InputError, FileNotFoundError) as error:
        shown.append(str(error))
    assert shown
    assert "SECRET" not in " ".join(shown)


def test_run_json_and_trackers_get_no_secrets_and_a_new_token_is_no_change(tmp_path: Path) -> None:
    config = replace(RECIPES["smoke"].students["smoke"], output_dir=tmp_path, pairs=ADDRESS)
    assert "SECRET" not in str(flat(asdict(config)))
    assert keep_settings(config, {}) == []
    kept = (tmp_path / "run.json").read_text()
    assert "SECRET" not in kept
    assert json.loads(kept)["config"]["pairs"] == "https://host:80/pairs?..."
    assert keep_settings(replace(config, pairs="https://other/pairs?token=NEW"), {}) == []


def test_a_training_with_a_token_shows_and_keeps_it_nowhere(
    pairs: Path, tmp_path: Path, train: Script
) -> None:
    few = "--max_train_steps", 1, "--validation_steps", 1, "--global_batch_size", 4 * PAIRS
    with serving(partial(Quiet, directory=pairs)) as address:
        result = completed(train(tmp_path / "run", "--pairs", f"{address}?token=SECRET", *few))
    assert "SECRET" not in result.out + result.err
    assert f"in {address}?..." in result.out
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(b"SECRET" in data for data in kept)
