"""Data sets made of others: the same pairs, their origins, interrupted, shared, refused."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch

from data.claims import PREFIX
from data.derive import open_whole
from data.manifest import count_shards, read_manifest, read_record, tar_name
from data.origins import cut, joined, origins_text, parse_origins
from data.pairs import Pairs
from data.reader import read_shard
from data.verify import find_damage
from pipeline.jobs.push import push

from .processes import At, Script, completed
from .shards import PAIRS, SHARDS, contents, folder, same, write_pairs

__all__ = ["folder"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of another seed."""
    return write_pairs(tmp_path_factory.mktemp("other"), 3, seed=1)


def everything(place: Path) -> Pairs:
    """Read a data set that must be whole."""
    manifest, shards = read_manifest(place), range(count_shards(place))
    assert [find_damage(place, shard, manifest) for shard in shards] == [None for _ in shards]
    return Pairs.cat([read_shard(place, shard, manifest) for shard in shards])


def some(pairs: Pairs, chosen: torch.Tensor | slice) -> list[Pairs]:
    return [pairs.take(chosen)]


def test_a_subset_has_the_listed_pairs_in_order_with_their_origins(folder, tmp_path, here) -> None:
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    listed.write_text("20-24, 7\n0 1\n7 13-14\n")
    command = "subset", folder, "--indices", listed, "--pairs_per_shard", 5, "--output_dir", out
    completed(here("curate_pairs", *command))
    chosen = torch.tensor([0, 1, 7, 13, 14, 20, 21, 22, 23, 24])
    assert same([everything(out)], some(everything(folder), chosen))
    records = [read_record(out, shard) for shard in range(2)]
    assert [record and record.origins for record in records] == ["0:0-1 0:7 0:13-14", "0:20-24"]


def test_a_subset_by_class_and_distance_is_that_and_continues(folder, tmp_path, here) -> None:
    out, pairs = tmp_path / "out", everything(folder)
    assert pairs.labels is not None
    command = ("subset", folder, "--classes", 1, 3, 4, "--drop_curved", 0.2, "--output_dir", out)
    command = (*command, "--pairs_per_shard", 4)
    completed(here("curate_pairs", *command))
    right = torch.isin(pairs.labels, torch.tensor([1, 3, 4])).nonzero()[:, 0]
    far = (pairs.images - pairs.noise).flatten(1).norm(dim=1)[right]
    kept = right[far.argsort()[: len(right) - round(0.2 * len(right))]].sort().values
    assert same([everything(out)], some(pairs, kept[: len(kept) // 4 * 4]))
    before = contents(out)
    (out / tar_name(1)).unlink()
    assert "1 of them written now" in completed(here("curate_pairs", *command)).err
    assert contents(out) == before


def test_merged_and_cut_anew_the_pairs_are_the_same_and_verify(
    folder, other, tmp_path, here
) -> None:
    merged, packed = tmp_path / "merged", tmp_path / "packed"
    completed(here("curate_pairs", "merge", folder, other, "--output_dir", merged))
    layout = "--pairs_per_shard", 11, "--pack", 4
    completed(here("curate_pairs", "reshard", merged, *layout, "--output_dir", packed))
    both = [Pairs.cat([everything(folder), everything(other)])]
    assert same([everything(merged)], both)
    assert same([everything(packed)], both)
    assert (record := read_record(packed, 4)) is not None
    assert record.origins == f"0:44-{SHARDS * PAIRS - 1} 1:0-6"
    derived = read_manifest(packed).derived
    assert derived is not None
    assert [source["seed"] for source in derived["sources"]] == [0, 1]
    assert [step["verb"] for step in derived["history"]] == ["merge", "reshard"]
    assert completed(here("verify_pairs", packed)).out.startswith("6 of 6 shards are whole")


def test_states_of_trajectories_are_kept(tmp_path, here) -> None:
    few = "--num_pairs", 16, "--pairs_per_shard", 8, "--teacher_batch_size", 8
    made, out = tmp_path / "made", tmp_path / "out"
    points = "--trajectory_points", 1
    completed(here("make_pairs", "smoke", *few, *points, "--output_dir", made))
    completed(here("curate_pairs", "reshard", made, "--pairs_per_shard", 4, "--output_dir", out))
    old, new = (read_shard(place, 0, states=True).take(slice(4)).states for place in (made, out))
    assert old is not None
    assert new is not None
    assert torch.equal(old, new)


def test_origins_that_are_not_those_of_the_pairs_are_found(folder, tmp_path, here) -> None:
    out = tmp_path / "out"
    completed(here("curate_pairs", "reshard", folder, "--output_dir", out))
    path = out / "pairs-000001.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"origins": "0:7-12"}))
    damage = find_damage(out, 1, read_manifest(out))
    assert damage is not None
    assert "that are not those of their origins" in damage
    path.write_text(json.dumps(record | {"origins": "0:6-10"}))
    assert "other origins" in str(find_damage(out, 1, read_manifest(out)))


def test_killed_in_a_shard_the_same_command_ends_with_the_same_bytes(
    script: Script, folder, tmp_path, here
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = "reshard", folder, "--pairs_per_shard", 4, "--output_dir"
    completed(here("curate_pairs", *command, whole))
    for moment in ("*/.pairs-000003.tar.*.tmp", "*/.pairs-000005.json.*.tmp"):
        at = At("open", moment)
        assert script("pipeline.curate_pairs", *command, killed, at=at).codes == [-9]
        assert contents(killed) != contents(whole)
    completed(here("curate_pairs", *command, killed))
    assert contents(killed) == contents(whole)


def test_jobs_share_the_work_and_say_so(folder, tmp_path, here) -> None:
    out = tmp_path / "out"
    out.mkdir()
    claim = out / f"{PREFIX}{tar_name(2)}"
    claim.write_text(f"1 elsewhere {int(time.time())} 0 0 8")
    shared = completed(here("curate_pairs", "reshard", folder, "--output_dir", out))
    claim.unlink()
    assert "7 of them written now; other jobs are at work on 1 of them" in shared.err
    completed(here("curate_pairs", "reshard", folder, "--output_dir", out))
    assert same([everything(out)], [everything(folder)])


def test_other_settings_are_refused_in_a_folder_that_has_pairs(folder, tmp_path, here) -> None:
    out = tmp_path / "out"
    completed(here("curate_pairs", "subset", folder, "--shards", "0-1", "--output_dir", out))
    before = contents(out)
    refused = here("curate_pairs", "subset", folder, "--shards", "0-2", "--output_dir", out)
    assert refused.code == 2
    assert "derived was 'subset shards 0-1 of 1 data sets (" in refused.err
    assert "is 'subset shards 0-2 of 1 data sets (" in refused.err
    assert "choose another output_dir" in refused.err
    assert contents(out) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("merge", "{0}", "{0}"), "without a pair in common"),
        (("merge",), "expected data sets to merge, got none"),
        (("reshard", "{0}", "--pairs_per_shard", "0"), "expected pairs_per_shard above 0, got 0"),
        (("subset", "{0}", "--shards", "9"), "expected numbers from 0 to 7,"),
        (("subset", "{0}", "--shards", "5-3"), "ranges that rise, in --shards, got 5-3"),
        (("subset", "{0}", "--shards", "0-999999999999"), "got 0-999999999999"),
        (("subset", "{0}", "--shards", "2-x"), "numbers and ranges such as 0-99,200"),
        (("subset", "{0}", "--classes", "10"), "classes 0 to 9"),
        (("reshard", "{0}", "--pairs_per_shard", "49"), "choose more pairs"),
        (("subset", "{0}", "--drop_curved", "1"), "expected drop_curved in [0, 1)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(folder, tmp_path, here, arguments, said) -> None:
    words = [word.format(folder) for word in arguments]
    refused = here("curate_pairs", *words, "--output_dir", tmp_path / "out")
    assert refused.code == 2
    assert said in refused.err
    assert not (tmp_path / "out").exists()


def test_a_preview_is_a_picture_and_figures(folder, tmp_path, here) -> None:
    completed(here("curate_pairs", "preview", folder, "--output_dir", tmp_path))
    figures, pairs = json.loads((tmp_path / "preview.json").read_text()), everything(folder)
    assert pairs.labels is not None
    assert figures["pairs_per_class"] == pairs.labels.bincount(minlength=10).tolist()
    assert figures["noise"]["mean"] == pytest.approx([float(pairs.noise.double().mean())], abs=1e-6)
    assert (tmp_path / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_a_student_trains_on_a_subset(script: Script, smoke_pairs, tmp_path) -> None:
    out, run = tmp_path / "out", tmp_path / "run"
    shards = "--shards", "1-4"
    completed(script("pipeline.curate_pairs", "subset", smoke_pairs, *shards, "--output_dir", out))
    completed(script("pipeline.train", "smoke", "--pairs", out, "--output_dir", run))
    assert (run / "run.json").is_file()


class Hub:
    """What `push` uses of the hub's client, with a folder for the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commits = folder, list[set[str]]()

    def create_repo(self, *_: object, **__: object) -> None:
        self.folder.mkdir(exist_ok=True)

    def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **_: object) -> None:
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.folder)
        self.commits.append(set(allow_patterns))

    def create_commit(self, repo_id: str, operations: list, **_: object) -> None:
        for operation in operations:
            (self.folder / operation.path_in_repo).write_bytes(operation.path_or_fileobj)
        self.commits.append({operation.path_in_repo for operation in operations})


def test_what_is_published_is_whole_and_tars_go_first(folder, tmp_path) -> None:
    hub = Hub(tmp_path / "repository")
    push(open_whole(folder), "someone/pairs", api=hub)  # type: ignore[arg-type]
    assert same([everything(hub.folder)], [everything(folder)])
    assert all(name.endswith(".tar") for name in hub.commits[0])
    assert {"README.md", "manifest.json", "pairs-000007.json"} <= hub.commits[1]
    assert str(folder) not in (hub.folder / "README.md").read_text()


def test_a_part_of_a_tar_is_not_published(tmp_path, here) -> None:
    write_pairs(tmp_path, 2)
    (tmp_path / tar_name(1)).write_bytes(b"cut")
    refused = here("curate_pairs", "push", tmp_path, "someone/pairs")
    assert refused.code == 2
    assert "pairs-000001.tar as its record says" in refused.err


def test_origins_are_cut_and_joined() -> None:
    runs = parse_origins("0:3-5 1:7 0:9-10")
    assert runs == [(0, range(3, 6)), (1, range(7, 8)), (0, range(9, 11))]
    assert origins_text(cut(runs, range(2, 5))) == "0:5 1:7 0:9"
    assert origins_text(joined([(0, range(2)), (0, range(2, 4))])) == "0:0-3"
    for bad in ("", "0", "0:3-", "0:1  0:2", "a:1"):
        with pytest.raises(ValueError, match="origins"):
            parse_origins(bad)
