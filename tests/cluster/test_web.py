"""Trainings that read from a web server, which dies, dawdles or refuses."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import Script, completed

from .conftest import FEW, engine, free_port, one_line, same, stopped_at_a_step

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]
WEB = f"http://127.0.0.1:{(WEB_PORT := free_port())}"


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
    "mood",
    [
        {"delay": 0.05},
        {"status": 500, "times": 1},
        {"status": 503, "times": 3, "for": "pairs-000003.tar"},
    ],
    ids=["slow", "500 once", "503 three times"],
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
