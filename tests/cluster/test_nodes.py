"""Two agents of torchrun, as on two machines, do what two processes of one machine do."""

import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.processes import ROOT, Script, completed
from tests.runs import WEIGHTS, assert_same

from .conftest import HERE, free_port, shards, variables

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


def on_two_nodes(*command: object) -> None:
    """Run a module as two machines would, both of them here."""
    call = ("bash", HERE / "node.sh", 2, f"127.0.0.1:{free_port()}", 1, "-m", *command)
    nodes = [
        subprocess.Popen([*map(str, call)], cwd=ROOT, env=variables() | {"ACCELERATE_USE_CPU": "1"})
        for _ in range(2)
    ]
    assert [node.wait() for node in nodes] == [0, 0]


def test_two_nodes_write_the_pairs_of_one_process(tmp_path: Path, smoke_pairs: Path) -> None:
    on_two_nodes("pipeline.make_pairs", "smoke", "--output_dir", tmp_path / "pairs")
    assert shards(tmp_path / "pairs") == shards(smoke_pairs)


def test_two_nodes_train_as_two_processes_do_and_as_one_but_for_rounding(
    tmp_path: Path, smoke_pairs: Path, smoke: Path, script: Script
) -> None:
    command = ("pipeline.train", "smoke", "--pairs", smoke_pairs, "--output_dir")
    on_two_nodes(*command, tmp_path / "nodes")
    completed(script(*command, tmp_path / "processes", processes=2))
    assert_same(tmp_path / "nodes", tmp_path / "processes")
    together, alone = load_file(tmp_path / "nodes" / WEIGHTS), load_file(smoke / WEIGHTS)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
