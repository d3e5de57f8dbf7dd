"""Trainings that read from an object store or a web server, which die, dawdle or refuse."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import At, Result, Script, completed
from tests.runs import WEIGHTS, metrics
from tests.shards import write_pairs

from .conftest import PAIRS, engine, free_port, shards, until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
S3 = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{(S3_PORT := free_port())}",
    **{"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"},
}
WEB = f"http://127.0.0.1:{(WEB_PORT := free_port())}"
STEPS = 120
FEW = ("--max_train_steps", STEPS, "--validation_steps", STEPS, "--checkpointing_steps", 40)
Start = Callable[[], None]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More shards than a training keeps in memory."""
    return write_pairs(tmp_path_factory.mktemp("many"), 25, "png")


@pytest.fixture(scope="module")
def local(many: Path, train: Script) -> Path:
    """A training that reads them from the disk."""
    run = many.with_name("local")
    completed(train(run, "--pairs", many, *FEW))
    return run


def same(run: Path, other: Path) -> bool:
    return (run / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()


def stopped_at_a_step(run: Path, kill: Callable[[], object], start: Callable[[], Result]) -> Result:
    """Start a training, kill its store once it has made a few steps, and wait for it."""
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(start)
        until(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) > 3)
        kill()
        return result.result()


def one_line(result: Result) -> str:
    """Return the message of a script that has refused its input."""
    assert result.code == 2, result.err[-3000:]
    assert "Traceback" not in result.err
    return result.err.strip().splitlines()[-1]


# ---------------------------------------------------------------- S3


def upload(folder: Path, bucket: str) -> str:
    """Put a data set into a new bucket."""
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir(bucket)
    for path in folder.glob("[!.]*"):
        system.put_file(str(path), f"{bucket}/pairs/{path.name}")
    return f"s3://{bucket}/pairs"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[ExitStack]:
    """Start an object store, which ends when the stack is closed."""
    pytest.importorskip("s3fs")
    for name, value in S3.items():
        monkeypatch.setenv(name, value)
    with ExitStack() as stack:
        stack.enter_context(engine("s3.sh", S3_PORT))
        yield stack


def objects(place: str) -> dict[str, bytes]:
    """Return the files of a data set in the store, hidden ones too."""
    import fsspec

    system = fsspec.filesystem("s3", skip_instance_cache=True)
    found = system.find(place.removeprefix("s3://"))
    return {path.rpartition("/")[2]: system.cat_file(path) for path in found}


def empty(bucket: str) -> str:
    """Create a bucket; the address of a folder in it."""
    import fsspec

    fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/pairs"


def test_three_writers_fill_an_object_store_with_the_bytes_of_a_folder(
    s3, script: Script, smoke_pairs: Path
) -> None:
    place = empty("written")
    command = "pipeline.make_pairs", "smoke", "--output_dir", place
    alone = "--task_index", 0, "--num_tasks", 1  # each believes that it is the only one
    result = script(*command, *alone, processes=3, **S3)
    assert result.codes == [0, 0, 0], result.err
    assert sum(map(int, re.findall(r"wrote (\d+) shards", result.err))) == 5
    assert objects(place) == shards(smoke_pairs)
    again = completed(script(*command, **S3))
    assert "nothing to do" in again.out
    assert (
        "5 of 5 shards are written" in completed(script("pipeline.pairs_status", place, **S3)).out
    )


def test_the_shard_of_a_writer_that_is_killed_is_made_by_the_next(
    s3, script: Script, smoke_pairs: Path
) -> None:
    place = empty("killed")
    command = "pipeline.make_pairs", "smoke", "--output_dir", place
    third = At("open", "*/.pairs-000002.tar.*.tmp")
    assert script(*command, at=third, **S3).code == -signal.SIGKILL
    left = objects(place)
    assert "pairs-000000.json" in left
    assert ".claim-pairs-000002.tar" in left
    assert "pairs-000002.json" not in left
    completed(script(*command, **S3))
    assert objects(place) == shards(smoke_pairs)


def test_a_writer_whose_object_store_dies_ends_in_one_line_and_the_next_one_continues(
    s3, script: Script, alone: Path
) -> None:
    place = empty("away")
    command = *PAIRS, "--output_dir", place
    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(script, *command, **S3)
        until(lambda: "pairs-000000.json" in objects(place), what="the first shard")
        s3.close()
        line = one_line(result.result())
    assert f"{place}/" in line
    s3.enter_context(engine("s3.sh", S3_PORT))
    empty("away")  # moto forgets everything
    completed(script(*command, **S3))
    assert objects(place) == shards(alone)


def test_three_readers_verify_an_object_store(s3, many: Path, script: Script) -> None:
    place = upload(many, "verify")
    result = script("pipeline.verify_pairs", place, processes=3, **S3)
    assert result.codes == [0, 0, 0], result.err


def test_a_training_with_a_cache_needs_the_tars_of_an_object_store_once(
    s3, many: Path, local: Path, train: Script, tmp_path: Path
) -> None:
    import fsspec

    command = ("--pairs", upload(many, "cache"), "--pairs_cache", tmp_path / "cache", *FEW)
    completed(train(tmp_path / "first", *command, **S3))
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in many.glob("*.tar"):
        system.rm_file(f"cache/pairs/{path.name}")
    completed(train(tmp_path / "second", *command, **S3))
    assert same(tmp_path / "first", local)
    assert same(tmp_path / "second", local)


def test_a_training_ends_in_one_line_when_its_object_store_dies_and_continues_with_it(
    s3, many: Path, local: Path, train: Script, tmp_path: Path
) -> None:
    run, place = tmp_path / "run", upload(many, "dies")
    start = lambda: train(run, "--pairs", place, *FEW, **S3)  # noqa: E731
    line = one_line(stopped_at_a_step(run, s3.close, start))
    assert f"expected to read {place}/pairs-" in line
    s3.enter_context(engine("s3.sh", S3_PORT))
    upload(many, "dies")
    completed(start())
    assert same(run, local)


# ---------------------------------------------------------------- HTTP


class Server:
    """A web server of a data set; `mood` says how it answers."""

    def __init__(self, folder: Path, moods: Path) -> None:
        self.folder, self.moods = folder, moods
        self.stack = ExitStack()

    def start(self) -> None:
        self.stack.enter_context(engine("web.py", self.folder, WEB_PORT, self.moods))

    def mood(self, **mood: object) -> None:
        self.moods.write_text(json.dumps(mood))


@pytest.fixture
def web(many: Path, tmp_path: Path) -> Iterator[Server]:
    server = Server(many, tmp_path / "moods.json")
    with server.stack:
        server.start()
        yield server


def test_a_training_ends_in_one_line_when_its_web_server_dies_and_continues_with_it(
    web: Server, local: Path, train: Script, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = lambda: train(run, "--pairs", WEB, *FEW)  # noqa: E731
    line = one_line(stopped_at_a_step(run, web.stack.close, start))
    assert f"expected to read {WEB}/pairs-" in line
    web.start()
    completed(start())
    assert same(run, local)


def test_a_web_server_may_be_away_for_a_few_seconds(
    web: Server, local: Path, train: Script, tmp_path: Path
) -> None:
    def restart() -> None:
        web.stack.close()
        web.start()

    run = tmp_path / "run"
    completed(stopped_at_a_step(run, restart, lambda: train(run, "--pairs", WEB, *FEW)))
    assert same(run, local)


@pytest.mark.parametrize(
    "mood", [{"delay": 0.05}, {"status": 500, "times": 2}], ids=["slow", "500"]
)
def test_what_a_web_server_does_for_a_while_changes_nothing(
    mood: dict, web: Server, local: Path, train: Script, tmp_path: Path
) -> None:
    web.mood(**mood)
    cache = "--pairs_cache", tmp_path / "cache"
    completed(train(tmp_path / "run", "--pairs", WEB, *cache, *FEW))
    assert same(tmp_path / "run", local)


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_web_server_that_never_gives_the_manifest_is_named_in_one_line(
    status: int, web: Server, train: Script, tmp_path: Path
) -> None:
    web.mood(status=status)
    assert f"{WEB}" in one_line(train(tmp_path / "run", "--pairs", WEB, *FEW))


@pytest.mark.parametrize("status", [403, 404])
def test_a_shard_that_a_web_server_does_not_give_is_damaged_and_may_be_skipped(
    status: int, web: Server, train: Script, tmp_path: Path
) -> None:
    web.mood(**{"status": status, "for": "pairs-000003.tar"})
    command = "--pairs", WEB, *FEW
    stopped = train(tmp_path / "run", *command)
    assert stopped.code in (1, 2)
    assert "Traceback" not in stopped.err
    assert "pairs-000003.tar" in stopped.err
    around = completed(train(tmp_path / "around", *command, "--skip_damaged_shards"))
    assert "pairs-000003.tar" in around.out + around.err
