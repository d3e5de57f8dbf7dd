"""Jobs that do not know each other share a data set; its status shows what they do."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import lock
from data.claims import AGE, Claims, read_claims, tidy
from data.manifest import count_shards, record_path, tar_path
from data.writer import write_shards
from pipeline.pairs_status import Status, gaps, look, rate_text

from .problems import Softsign
from .processes import At, Result, Script, completed
from .shards import contents, manifest_of, write_pairs

MANIFEST = manifest_of(Softsign())
SHARDS = 12
SMALL = (
    *("--num_pairs", 8 * SHARDS, "--pairs_per_shard", 8, "--teacher_batch_size", 4),
    *("--num_inference_steps", 2),
)


def wait_for(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---------------------------------------------------------------- processes


@pytest.fixture
def jobs(script: Script, tmp_path: Path) -> Callable[..., Result]:
    """Run make_pairs in processes of which each believes that it is the only one."""
    alone = "--task_index", 0, "--num_tasks", 1
    folder = "--output_dir", tmp_path / "pairs"
    return partial(script, "pipeline.make_pairs", "smoke", *SMALL, *folder, *alone)


@pytest.fixture(scope="module")
def undisturbed(script: Script, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one job writes."""
    folder = tmp_path_factory.mktemp("alone") / "pairs"
    completed(script("pipeline.make_pairs", "smoke", *SMALL, "--output_dir", folder))
    return contents(folder)


def written(result: Result) -> list[int]:
    """Return how many shards each job has made."""
    return [int(count) for count in re.findall(r"wrote (\d+) shards", result.err)]


def test_three_jobs_without_numbers_make_each_shard_once(jobs, tmp_path, undisturbed):
    made = written(completed(jobs(processes=3)))
    assert len(made) == 3
    assert sum(made) == SHARDS
    assert sum(count > 0 for count in made) >= 2
    assert contents(tmp_path / "pairs") == undisturbed
    status = look(tmp_path / "pairs")
    assert (status.done, status.in_work, status.stale, status.missing) == (SHARDS, [], [], [])


def test_the_shard_of_a_killed_job_is_taken_over_by_the_others(jobs, tmp_path, undisturbed):
    second = At("open", "*/.pairs-*.tar.*.tmp", count=2, calls=50)  # its second shard
    result = jobs(processes=3, at=second, rank=0, group=False)
    assert result.codes == [-signal.SIGKILL, 0, 0]
    assert SHARDS - 1 <= sum(written(result)) <= SHARDS  # its first may have been published
    assert contents(tmp_path / "pairs") == undisturbed


def test_a_job_that_comes_after_a_killed_one_takes_its_shard_over(jobs, tmp_path, undisturbed):
    folder = tmp_path / "pairs"
    killed = jobs(at=At("open", "*/.pairs-000003.tar.*.tmp", calls=50))
    assert killed.code == -signal.SIGKILL
    status = look(folder, 8 * SHARDS)
    held = [work.shard for work in status.stale]
    assert held in ([3], [2, 3])  # shard 2 may have waited to be published
    assert (status.in_work, status.missing) == ([], [(held[0], SHARDS - 1)])
    assert written(completed(jobs())) == [SHARDS - status.done]
    assert contents(folder) == undisturbed


def work(folder: Path) -> None:
    """Write shard 0, and be at work on shard 1 for ever."""

    class Stuck(Softsign):
        def __call__(self, noise: Tensor, labels: Tensor | None) -> Tensor:
            if (folder / "pairs-000000.json").exists():
                time.sleep(1000)
            return super().__call__(noise, labels)

    torch.set_num_threads(1)
    with Claims(folder, 5) as claims:
        while new := write_shards(folder, islice(claims.missing(range(5)), 1), Stuck(), MANIFEST):
            assert new


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_status_shows_a_job_at_work_and_after_its_death(tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 0)
    job = multiprocessing.get_context("fork").Process(target=work, args=(folder,))
    job.start()
    wait_for(lambda: (folder / ".claim-pairs-000001.tar").exists())
    wait_for(lambda: any(w.shard == 1 for w in look(folder).in_work))
    status, name = look(folder), f"{lock.machine()}:{job.pid}"
    assert (status.done, status.shards, status.missing) == (1, 5, [(2, 4)])
    assert [(w.shard, w.job) for w in status.in_work] == [(1, name)]
    assert [(j.job, j.shards, j.written) for j in status.jobs] == [(name, [1], 1)]
    job.kill()
    job.join()
    status = look(folder)
    assert (status.shards, status.in_work, status.jobs) == (5, [], [])
    assert [w.shard for w in status.stale] == [1]
    assert status.missing == [(1, 4)]
    with Claims(folder, 5) as claims:
        write_shards(folder, claims.missing(range(5)), Softsign(), MANIFEST)
    tidy(folder)
    assert contents(folder) == contents(write_pairs(tmp_path / "alone", 5))


# ---------------------------------------------------------------- one claim


def claim_of(folder: Path, shard: int, content: str, age: float = 0.0) -> Path:
    path = folder / f".claim-pairs-{shard:06d}.tar"
    path.write_text(content)
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_claim_of_another_machine_is_kept_while_it_is_renewed_and_taken_over_later(tmp_path):
    folder = write_pairs(tmp_path, 1)
    path = claim_of(folder, 1, "7 far-away 1000 1000 4 9")
    with Claims(folder, 3) as claims:
        assert list(claims.missing(range(3))) == [2]
        assert claims.others == {0, 1}
        assert read_claims(folder)[0].owner.name == "far-away:7"
        os.utime(path, (time.time() - AGE - 1,) * 2)
        assert read_claims(folder)[0].stale
        assert list(claims.missing([1])) == [1]
        assert read_claims(folder)[0].owner.is_self
        assert list(claims.missing([1])) == []
    assert not read_claims(folder)


def test_a_claim_of_an_earlier_process_with_our_number_is_taken_over(tmp_path):
    folder = write_pairs(tmp_path, 0)
    claim_of(folder, 0, f"{os.getpid()} {lock.machine()} 1000 1000 0 1")
    with Claims(folder, 1) as claims:
        assert list(claims.missing([0])) == [0]


def test_a_claim_that_others_have_taken_over_is_left_alone(tmp_path):
    folder = write_pairs(tmp_path, 0)
    with Claims(folder, 1) as claims:
        assert list(claims.missing([0])) == [0]
        path = claim_of(folder, 0, "7 far-away 1000")
        before = path.stat().st_mtime
        lock.renew(path)
    assert path.read_text().startswith("7 far-away")
    assert path.stat().st_mtime == before


def test_a_claim_is_renewed_while_the_teacher_is_busy(tmp_path, monkeypatch):
    monkeypatch.setattr("data.claims.RENEWAL", 0.01)
    folder = write_pairs(tmp_path, 0)
    with Claims(folder, 1) as claims:
        next(claims.missing([0]))
        path = next(folder.glob(".claim-*"))
        os.utime(path, (1, 1))
        wait_for(lambda: path.stat().st_mtime > 1)


def test_tidying_deletes_claims_of_finished_shards_only(tmp_path):
    folder = write_pairs(tmp_path, 1)
    for shard in (0, 1):
        claim_of(folder, shard, "7 far-away 1000")
    (folder / ".claim-of-somebody-else").touch()
    tidy(folder)
    hidden = {path.name for path in folder.glob(".*")}
    assert hidden == {".claim-pairs-000001.tar", ".claim-of-somebody-else"}


def test_tidying_deletes_probes_of_dead_jobs_only(tmp_path):
    folder, here = write_pairs(tmp_path / "pairs", 1), lock.machine()
    dead, living, far, old = (f".probe-{x * 32}" for x in "abcd")
    (folder / dead).write_text(f"{2**22} {here} 1000")
    (folder / living).write_text(f"{os.getppid()} {here} 1000")
    for name, age in ((far, 0), (old, AGE + 5), (f".claims.{'a' * 32}.tmp", 10)):
        (folder / name).write_text("" if "claims" in name else "7 far-away 1000")
        os.utime(folder / name, (time.time() - age,) * 2)
    tidy(folder)
    assert {path.name for path in folder.glob(".*")} == {living, far}


# ---------------------------------------------------------------- the commands


def test_make_pairs_waits_for_nobody_and_says_what_others_work_on(tmp_path, here):
    few = "--num_pairs", 32, "--pairs_per_shard", 8, "--teacher_batch_size", 8
    make = "make_pairs", "smoke", *few, "--output_dir", tmp_path
    completed(here(*make, "--num_inference_steps", 2))
    for shard in (1, 3):
        record_path(tmp_path, shard).unlink()
    path = claim_of(tmp_path, 1, f"{os.getppid()} {lock.machine()} 1000 1000 2 4")
    some = completed(here(*make, "--num_inference_steps", 2))
    last = some.err.splitlines()[-1]
    assert "wrote 1 shards" in last
    assert last.endswith(f"other jobs are at work on shards 1 ({lock.machine()}:{os.getppid()})")
    assert path.exists()
    path.write_text("999999999 " + path.read_text().split(" ", 1)[1])  # now it is dead
    completed(here(*make, "--num_inference_steps", 2))
    assert count_shards(tmp_path) == 4
    assert not list(tmp_path.glob(".*"))


def status_of(folder: Path, here, *arguments: object) -> dict:
    return json.loads(completed(here("pairs_status", folder, "--json", *arguments)).out)


def test_status_as_text_and_as_json(tmp_path, here):
    folder = write_pairs(tmp_path, 6)
    now = time.time()
    for shard in range(6):
        os.utime(record_path(folder, shard), (now - 60 + 10 * shard,) * 2)
    tar_path(folder, 4).unlink()
    claim_of(folder, 6, f"7 far-away {now - 5:.0f} {now - 65:.0f} 3 12")
    claim_of(folder, 9, f"8 elsewhere {now - 900:.0f} {now - 900:.0f} 0 12", age=900)
    claim_of(folder, 0, "9 far-away 1000")  # of a finished shard
    status = status_of(folder, here)
    assert status["done"] == 5
    assert status["missing"] == [[4, 4], [7, 11]]
    assert [(w["shard"], w["job"]) for w in status["in_work"]] == [(6, "far-away:7")]
    assert [w["shard"] for w in status["stale"]] == [9]
    assert status["pairs_per_second"] == pytest.approx(4 * 6 / 50)
    assert status["seconds_left"] == pytest.approx(7 * 6 / (4 * 6 / 50))
    (job,) = status["jobs"]
    assert (job["shards"], job["written"]) == ([6], 3)
    assert job["pairs_per_second"] == pytest.approx(3 * 6 / 65, rel=0.1)
    text = completed(here("pairs_status", folder)).out.splitlines()
    assert text[0].startswith(f"5 of 12 shards are written to {folder}, 1 in work, 6 missing")
    assert "far-away:7 works on shard 6 for 00:0" in text[1]
    assert "elsewhere:8 is gone: shard 9, claimed 1" in text[2]
    assert text[3:] == ["missing: 4, 7-11"]
    assert status_of(folder, here, "--num_pairs", 48)["shards"] == 8


def test_status_of_a_folder_without_jobs_goes_by_its_last_shard(tmp_path, here):
    folder = write_pairs(tmp_path, 3)
    assert "give --num_pairs if there shall be more" in here("pairs_status", folder).out
    status = look(folder, 30)
    assert isinstance(status, Status)
    assert (status.done, status.missing, status.seconds_left) == (3, [(3, 4)], None)
    assert gaps(set(), 0) == []
    rates = [rate_text(rate) for rate in (1234.5, 9.94, 0.04)]
    assert rates == ["1,234 pairs/s", "9.9 pairs/s", "0.04 pairs/s"]


@pytest.mark.parametrize(
    "content", ["", "x", "0 a 1", "1 " + "a" * 999, "7 b 99999999999 9 999999999999999999 5", "\0"]
)
def test_strange_claims_are_no_reason_to_fail(tmp_path, here, content):
    folder = write_pairs(tmp_path, 2)
    claim_of(folder, 999_999, content)
    os.mkfifo(folder / ".claim-pairs-000005.tar")
    assert status_of(folder, here)["done"] == 2
    assert completed(here("pairs_status", folder)).out


def test_bad_input_to_status_is_one_line(tmp_path, here):
    (tmp_path / "empty").mkdir()
    folder = write_pairs(tmp_path / "pairs", 1)
    for arguments, shown in (
        ((tmp_path / "none",), "no readable manifest.json"),
        (("memory://status/none",), "no readable manifest.json"),
        (("https://host/pairs",), "expected a local folder or an object store (s3,"),
        ((tmp_path / "empty",), "no readable manifest.json"),
        ((folder, "--num_pairs", 7), "expected num_pairs as a multiple of 6, got 7"),
        ((folder, "--num_pairs", -6), "expected num_pairs above 0, got -6"),
    ):
        result = here("pairs_status", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), arguments
        assert shown in result.err
