"""Make data sets of pairs out of others, look at them, and publish them.

    python -m pipeline.curate_pairs subset PAIRS --output_dir OUT --classes 3 5 --drop_curved 0.1
    python -m pipeline.curate_pairs merge PAIRS PAIRS ... --output_dir OUT
    python -m pipeline.curate_pairs reshard PAIRS --output_dir OUT --pack 256
    python -m pipeline.curate_pairs preview PAIRS --output_dir FOLDER
    python -m pipeline.curate_pairs push PAIRS USER/NAME

PAIRS is whatever training reads, OUT a folder or an object store, as for make_pairs.py; as there,
the same command continues, and several jobs share the work. Next: verify_pairs.py, which knows
where the pairs of such a data set come from.
"""

from pipeline import cli
from pipeline.recipes.settings_pairs import curations

if __name__ == "__main__":
    cli.check_arguments(curations)

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.claims import Claims, missing_shards, tidy
from data.derive import Chosen, Derived, Whole, check_alike, choose, open_whole
from data.files import new_file, write_json
from data.places import open_site
from data.reader import read_shard
from data.summary import summarise
from get.errors import InputError
from pipeline.jobs.pair_sheet import strips
from pipeline.jobs.push import push
from pipeline.jobs.sheet import stacked
from pipeline.recipes.settings_pairs import Curation, Merge, Preview, Push, Reshard, Subset, Writing


def main(config: Curation) -> None:
    """Do what the settings name."""
    match config:
        case Subset():
            write(config, "subset", (whole := open_whole(config.pairs),), [subset(config, whole)])
        case Merge():
            check_alike(wholes := [open_whole(place) for place in config.pairs])
            write(config, "merge", wholes, [range(len(whole)) for whole in wholes])
        case Reshard():
            write(config, "reshard", (whole := open_whole(config.pairs),), [range(len(whole))])
        case Preview():
            preview(config)
        case Push():
            push(open_whole(config.pairs), config.repo_id, private=config.private)


def subset(config: Subset, whole: Whole) -> Chosen:
    """Return the pairs that the settings choose."""
    size, within = whole.manifest.pairs_per_shard, None
    if config.shards is not None:
        shards = numbers(config.shards, "--shards", len(whole.records))
        within = (shards[:, None] * size + np.arange(size)).reshape(-1)
    if config.indices is not None:
        try:
            text = config.indices.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"expected a text file of indices, got {config.indices}: {error}; check the path"
            ) from error
        listed = numbers(text, str(config.indices), len(whole))
        within = listed if within is None else np.intersect1d(within, listed)
    reads = -(-(len(whole) if within is None else len(within)) // size)
    read = bool(config.classes or config.drop_curved)
    with cli.progress_bar(reads, "choose", "shard", shown=read) as bar:
        return choose(
            whole,
            within=within,
            classes=config.classes,
            drop_curved=config.drop_curved,
            progress=bar.update,
        )


def numbers(text: str, where: str, count: int) -> np.ndarray:
    """Return the numbers of a list such as `0-99,200`, in order, each once, all below `count`."""
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    fits = [re.fullmatch(r"([0-9]{1,12})(?:-([0-9]{1,12}))?", part) for part in parts]
    bad = [part for part, fit in zip(parts, fits, strict=True) if fit is None]
    if bad or not parts:
        raise InputError(
            f"expected numbers and ranges such as 0-99,200 in {where}, got "
            f"{ascii(bad[0])[:50] if bad else 'none'}"
        )
    ranges = [range(int(fit[1]), int(fit[2] or fit[1]) + 1) for fit in fits if fit]
    for part, found in zip(parts, ranges, strict=True):
        if not found or found[-1] >= count:
            raise InputError(
                f"expected numbers from 0 to {count - 1}, ranges that rise, in {where}, got {part}"
            )
    return np.unique(np.concatenate([np.arange(r.start, r.stop) for r in ranges]))


def write(config: Writing, verb: str, wholes: Sequence[Whole], chosen: Sequence[Chosen]) -> None:
    """Write those shards of a derived data set that are missing and that no other job writes."""
    if not (site := open_site(config.output_dir)).exclusive:
        raise InputError(
            f"expected a store in which jobs can claim shards, got {site}, which lets several "
            "create the same object; write to a local folder and copy it there"
        )
    settings = {
        name: value.name if isinstance(value, Path) else _plain(value)
        for name in ("shards", "indices", "classes", "drop_curved")
        if (value := getattr(config, name, None))
    }
    derived = Derived(
        verb=verb,
        settings=settings,
        wholes=wholes,
        chosen=chosen,
        pairs_per_shard=config.pairs_per_shard,
        pack=config.pack,
    )
    site.open(derived.manifest)
    size, written = derived.manifest.pairs_per_shard, 0
    rest = list(missing_shards(site, range(derived.shards)))
    bar = cli.progress_bar(len(rest) * size, verb, "pair")
    with cli.Signals() as signals, bar, Claims(site, derived.shards) as claims:
        before = -1
        while written > before:
            before = written
            for shard in claims.missing(rest):
                derived.write(site, shard)
                written += 1
                bar.update(size)
                if signals.received:
                    bar.close()
                    signals.exit(signals.received, f"{written} shards are written to {site}")
            rest = sorted(claims.others)  # look again: a job may have died since
    tidy(site)
    left = derived.count - derived.shards * size
    others = len(list(missing_shards(site, range(derived.shards))))
    remarks = [f"{left} more do not fill a shard and are left out"] if left else []
    remarks += [f"other jobs are at work on {others} of them"] if others else []
    print(
        f"{site}: {derived.shards * size:,} pairs in {derived.shards} shards, {written} of them "
        f"written now{''.join(f'; {remark}' for remark in remarks)}",
        file=sys.stderr,
    )


def _plain(value: object) -> object:
    """Return a setting as JSON gives it back, so that a later call finds the same."""
    return list(value) if isinstance(value, tuple) else value


def preview(config: Preview) -> None:
    """Write the contact sheet and the figures."""
    whole = open_whole(config.pairs)
    count = min(-(-config.num_pairs // whole.manifest.pairs_per_shard), len(whole.records))
    shards = np.linspace(0, len(whole.records) - 1, count).astype(int).tolist()
    figures = summarise(whole, shards)
    write_json(config.output_dir / "preview.json", figures)
    first = read_shard(whole.store, shards[0], whole.manifest).as_floats()
    with new_file(config.output_dir / "preview.png") as temporary:
        stacked(strips(first)).save(temporary, format="png")
    quantiles = ", ".join(f"{q}: {x:.2f}" for q, x in figures["distance_quantiles"].items())
    print(
        f"{config.output_dir}: {figures['looked_at']:,} of {figures['pairs']:,} pairs; "
        f"|x - z| {quantiles}"
    )


if __name__ == "__main__":
    cli.run(main, curations)
