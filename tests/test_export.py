"""`convert export`: students where our packages are not installed, torch.export, ONNX, the card."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from safetensors.torch import load_file

from data.locuslab_pairs import find_files, read_pairs
from data.manifest import read_manifest
from data.reader import read_shard
from get import GETPipeline
from get.models import Student
from pipeline.jobs.bundle import bundle
from pipeline.jobs.export import publish, write_form
from pipeline.jobs.students import weights_hash

from .problems import as_users_run_it as as_users_run_it
from .problems import seeded, tiny_get, tiny_vit
from .shards import folder

__all__ = ["folder"]

MODELS = {
    "GET": tiny_get(channels=1, num_classes=10, coda_depth=1),
    "normal": tiny_get(z0="normal"),
    "ViT": tiny_vit(num_classes=10),
}

ELSEWHERE = """
import sys
from safetensors.torch import save_file
try:
    import get
except ImportError:
    pass
else:
    sys.exit(f"our package is here: {get}")
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
images = pipeline(batch_size=3, generator=torch.Generator().manual_seed(5), output_type="pt").images
assert not {"jaxtyping", "get", "data", "pipeline"} & sys.modules.keys()
pipeline.save_pretrained(sys.argv[3])
save_file({"images": images}, sys.argv[2])
"""


def saved(model: Student, tmp_path: Path) -> Path:
    GETPipeline(model).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def images(pipeline: DiffusionPipeline) -> torch.Tensor:
    return pipeline(batch_size=3, generator=seeded(5), output_type="pt").images  # type: ignore[operator]


@pytest.mark.parametrize("name", ["GET", pytest.param("ViT", marks=pytest.mark.slow)])
def test_an_exported_student_makes_the_same_images_without_our_packages(name, tmp_path, here):
    run, out = saved(MODELS[name], tmp_path), tmp_path / "someone's export"
    assert here("convert", "export", run, out).code == 0
    program = tmp_path / "elsewhere" / "program.py"  # its folder is the first on the path
    program.parent.mkdir()
    program.write_text(ELSEWHERE)
    packages = [path for path in sys.path if path.endswith("-packages")]
    hidden = tmp_path / "packages"  # without the editable install of ours
    hidden.mkdir()
    for entry in Path(packages[0]).iterdir():
        if "get_distillation" not in entry.name and "jaxtyping" not in entry.name:
            (hidden / entry.name).symlink_to(entry)
    environment = {
        "PYTHONPATH": str(hidden),
        "HF_HOME": str(tmp_path / "hf"),
        "OMP_NUM_THREADS": "1",
    }
    made, again = tmp_path / "made.safetensors", tmp_path / "again"
    done = subprocess.run(
        [sys.executable, "-S", program, out, made, again],
        env=environment, cwd=program.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    expected = images(GETPipeline.from_pretrained(run, use_safetensors=True))
    torch.testing.assert_close(load_file(made)["images"], expected)
    assert "Images of seed 0" in (out / "README.md").read_text()
    assert (out / "images.png").stat().st_size > 500


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", ["GET", pytest.param("normal", marks=pytest.mark.slow), "ViT"])
def test_torch_export_makes_the_same_images_in_batches_of_any_size(name, tmp_path):
    iterations = None if name == "ViT" else 4
    pipeline = GETPipeline(MODELS[name])
    assert write_form(pipeline, tmp_path, "torch", iterations) <= 1e-4
    program = torch.export.load(tmp_path / "model.pt2").module()
    noise = torch.randn(1, *pipeline.model.image_shape, generator=seeded(0))
    labels = torch.tensor([3]) if pipeline.model.num_classes else None
    z0 = torch.randn(1, *pipeline.model.start_shape) if pipeline.model.start_shape else None
    expected = pipeline.model.images(noise, labels, iterations=iterations, z0=z0)
    assert expected.std() > 0.01
    torch.testing.assert_close(program(noise, labels, z0), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("name", MODELS)
def test_onnx_makes_the_same_images_in_batches_of_any_size(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pipeline = GETPipeline(MODELS[name])
    assert write_form(pipeline, tmp_path, "onnx", None) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    shape = session.get_inputs()[0].shape
    assert not isinstance(shape[0], int)
    assert [x.name for x in session.get_inputs()] == {
        "GET": ["noise", "labels"], "normal": ["noise", "z0"], "ViT": ["noise", "labels"]
    }[name]  # fmt: skip


def test_a_bundle_refuses_two_meanings_of_one_name(monkeypatch, tmp_path):
    for name, text in (("a", "X = 1"), ("b", "from get.a import X as Y\nX = 2")):
        (tmp_path / f"{name}.py").write_text(f'"""A module."""\n\n{text}\n')
    monkeypatch.setattr("pipeline.jobs.bundle._source", lambda m: tmp_path / f"{m[4:]}.py")
    with pytest.raises(RuntimeError, match=r"X is in get\.a and in get\.b"):
        bundle("get.b")


class Hub:
    """What `publish` uses of the hub's client, with a folder for the repository."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        self.calls.append((repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.calls.append((repo_id, sorted(p.name for p in folder_path.iterdir())))


def test_a_card_has_the_figures_of_a_measurement_and_says_how_to_load_it(tmp_path, here):
    figures = Path(__file__).parents[1] / "docs" / "measurements" / "digits"
    out = tmp_path / "out"
    run = saved(MODELS["GET"], tmp_path)
    for name in ("digits", "digits-vit"):
        other = here("convert", "export", run, out / name, "--evaluation", figures / f"{name}.json")
        assert (other.code, other.err.count("\n")) == (2, 1)
        assert "expected figures of the model in" in other.err
        measured = json.loads((figures / f"{name}.json").read_text())
        measured["inputs"]["weights"] = weights_hash(run)
        (tmp_path / "figures.json").write_text(json.dumps(measured))
        flags = "--evaluation", tmp_path / "figures.json", "--license", "mit"
        assert here("convert", "export", run, out / name, *flags).code == 0
        card = (out / name / "README.md").read_text()
        assert card.startswith("---\n")
        assert "license: mit" in card
        assert 'from_pretrained("' in card
        assert "digits-features (trained on)" in card
        row = measured if measured.get("by_iterations") is None else measured["by_iterations"]["2"]
        assert f"{row['networks']['digits-features']['fid']:.3g} |" in card
        assert str(tmp_path) not in card
    hub = Hub()
    publish(out / "digits", "someone/digits", private=True, api=hub)  # type: ignore[arg-type]
    assert hub.calls[0] == ("someone/digits", True, True)
    assert {"README.md", "model", "model_index.json", "pipeline.py"} <= {*hub.calls[1][1]}


def test_bad_input_of_an_export_is_one_line(tmp_path, here):
    run, out = saved(MODELS["GET"], tmp_path), tmp_path / "out"
    for arguments, said in (
        (("export", tmp_path / "none", out), "expected a model (model_index.json) in"),
        (("export", run, run), "expected nothing at"),
        (("export", run, out, "--evaluation", tmp_path / "no.json"), "expected JSON in"),
        (("export_pairs", tmp_path, out), "expected"),
    ):
        refused = here("convert", *arguments)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert said in refused.err
        assert not out.exists()


def test_exported_pairs_are_the_pairs(folder, tmp_path, here):
    manifest = read_manifest(folder)
    first = read_shard(folder, 0, manifest).as_floats()
    assert first.labels is not None
    assert (
        here("convert", "export_pairs", folder, tmp_path / "old", "--layout", "locuslab").code == 0
    )
    pairs, classes = read_pairs(find_files(tmp_path / "old")[0])
    assert classes == manifest.num_classes
    for a, b in ((pairs.noise, first.noise), (pairs.images, first.images)):
        assert torch.equal(a, b)
    assert pairs.labels is not None
    assert torch.equal(pairs.labels, first.labels)

    assert here("convert", "export_pairs", folder, tmp_path / "fastgen").code == 0
    with tarfile.open(sorted((tmp_path / "fastgen").glob("*.tar"))[0]) as tar:
        names = tar.getnames()
        assert names[:3] == [f"000000000.{k}.pth" for k in ("latent", "noise", "txt_emb")]
        content = {n: tar.extractfile(n) for n in names[:3]}
        for name, file in content.items():
            assert file is not None
            tensor = torch.load(io.BytesIO(file.read()), weights_only=True)  # noqa: TID251
            expected = {
                "latent": first.images[0],
                "noise": first.noise[0],
                "txt_emb": torch.eye(manifest.num_classes or 0)[first.labels[0]],
            }[name.split(".")[1]]
            assert torch.equal(tensor, expected)
