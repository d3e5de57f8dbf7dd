"""States of the teacher's sampler, kept with the pairs: what they are, written, read, verified."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data import SHIPPED
from data.codec import decode, encode
from data.manifest import Manifest, read_manifest, record_path
from data.pair_settings import PairSettings
from data.pairs import Pairs
from data.reader import batches, read_shard
from data.teachers.edm.precondition import denoise
from data.teachers.heun import EdmHeun, heun
from data.teachers.ode import choose_sampler
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from data.teachers.teacher import Teacher
from data.verify import find_damage
from data.writer import generate_shard, write_given
from get.errors import InputError
from get.noise import draw

from .processes import completed
from .shards import order
from .test_ode import EVERY_SCHEDULER, ONE, knows_the_image, saved, scheduler, steps, unit_noise

__all__ = ["scheduler"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

DIGITS = str(SHIPPED / "digits-teacher")


@EVERY_SCHEDULER
def test_a_state_is_the_image_and_so_much_noise(scheduler: Any) -> None:
    image, noise = torch.rand(1, 3, 4, 4), unit_noise()
    predict, calls = knows_the_image(image, scheduler), []
    sampler = steps(scheduler, 60)
    teacher = Teacher(
        network=nn.Identity(),
        call=lambda network, x, time, labels: (calls.append(time), predict(x, time))[1],
        ode=choose_sampler(type(scheduler).__name__, saved(scheduler), sampler, "the teacher"),
        image_shape=(3, 4, 4),
        num_classes=None,
        fingerprint="",
        sampler=sampler,
    )
    if type(scheduler).__name__ == ONE:
        with pytest.raises(InputError, match="at most 0 trajectory_points of 1 steps of auto"):
            teacher.levels(1)
        return
    levels = torch.tensor(teacher.levels(6)).view(6, 1, 1, 1)
    assert (levels.diff(dim=0) < 0).all()
    assert levels[0] > 1 > levels[-1] > 0
    images, states = teacher.with_states(noise, None, 6)
    assert len(calls) == teacher.evaluations
    assert torch.equal(images, teacher(noise, None))
    assert states.dtype == torch.float16
    # The image that such a network knows lies on a straight line with its noise.
    expected = (image[:, None] + levels * noise[:, None]) / (1 + levels**2).sqrt()
    torch.testing.assert_close(states.float(), expected, rtol=0, atol=0.02)


def test_states_of_heuns_method_are_those_between_its_steps() -> None:
    teacher = open_teacher(Path(DIGITS), Sampler(steps=5), "cpu")
    noise, labels = draw(0, range(3), teacher.image_shape, 10)
    _, states = teacher.with_states(noise, labels, 4)
    ode = teacher.ode
    assert isinstance(ode, EdmHeun)
    assert teacher.levels(4) == pytest.approx(ode.sigmas[1:5].tolist(), rel=1e-5)
    assert teacher.levels(2) == teacher.levels(4)[1:3]

    def predict(x: Tensor, time: Tensor) -> Tensor:
        return teacher.network(x, time, class_labels=labels).sample

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        return denoise(ode.precond, predict, x.float(), sigma.float()).double()

    for i, sigma in enumerate(ode.sigmas[1:5]):
        x = heun(denoiser, noise, ode.sigmas[: i + 2]) / (1 + sigma**2).sqrt()
        torch.testing.assert_close(states[:, i].double(), x, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------ with the pairs


def settings(folder: Path, **changes: Any) -> PairSettings:
    small: dict[str, Any] = {"num_inference_steps": 3, "teacher_batch_size": 4}
    small |= {"pairs_per_shard": 6, "trajectory_points": 2}
    return PairSettings(teacher=DIGITS, output_dir=folder, **small | changes)


@pytest.mark.parametrize("pack", [1, 2])
def test_states_are_written_and_read_by_who_asks(tmp_path: Path, pack: int) -> None:
    for shard in range(2):
        generate_shard(settings(tmp_path / "with", pack=pack), shard)
        generate_shard(settings(tmp_path / "without", pack=pack, trajectory_points=0), shard)
    manifest, plain = (read_manifest(tmp_path / name) for name in ("with", "without"))
    assert manifest.trajectory == pytest.approx((2.51522, 0.002))
    assert replace(manifest, trajectory=()) == plain
    assert (
        len({manifest.identity, plain.identity, replace(manifest, trajectory=(1.0,)).identity}) == 3
    )
    teacher = open_teacher(Path(DIGITS), Sampler(steps=3), "cpu")
    noise, labels = draw(0, range(4), teacher.image_shape, 10)
    _, states = teacher.with_states(noise, labels, 2)
    whole = read_shard(tmp_path / "with", 0, states=True)
    assert whole.states is not None
    assert torch.equal(whole.states[:4], states)
    for name, asked in (("with", False), ("without", True), ("without", False)):
        pairs = read_shard(tmp_path / name, 0, states=asked)
        assert pairs.states is None
        assert torch.equal(pairs.images, whole.images)
    read = order(tmp_path / "with", shards=2, streams=2, batch_size=4)
    batch = next(batches(read, states=True))
    assert batch.states is not None
    assert batch.states.dtype == torch.float32
    at = [i % 6 for i in read.indices(0) if i < 6]
    assert torch.equal(batch.states[:2], whole.states[at].float())
    assert next(batches(read)).states is None


def test_data_sets_without_trajectories_are_what_they_were() -> None:
    manifest = Manifest(
        teacher="t",
        sampler={"steps": 18},
        evaluations=35,
        seed=0,
        teacher_batch_size=256,
        image_shape=(1, 8, 8),
        num_classes=10,
        image_format="png",
        pairs_per_shard=1024,
    )
    assert manifest.identity == "f62970023d81f439"  # before there were trajectories
    assert "trajectory" not in manifest.as_json()


def test_settings_that_no_sampler_can_fulfil_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trajectory_points of 0"):
        settings(tmp_path, trajectory_points=-1)
    with pytest.raises(InputError, match="at most 2 trajectory_points of 3 steps of auto, got 3"):
        generate_shard(settings(tmp_path, trajectory_points=3), 0)
    assert not (tmp_path / "manifest.json").exists()


def test_a_manifest_of_impossible_levels_is_refused(tmp_path: Path) -> None:
    generate_shard(settings(tmp_path), 0)
    path = tmp_path / "manifest.json"
    text = path.read_text()
    assert text.count("0.002") == 1
    for wrong in ("-1.0", "NaN", '"a"', "Infinity", "true"):
        path.write_text(text.replace("0.002", wrong))
        with pytest.raises(InputError, match="trajectory' "):
            read_manifest(tmp_path)


def test_wrong_states_are_found(tmp_path: Path, here: Any) -> None:
    generate_shard(settings(tmp_path), 0)
    deep = "verify_pairs", tmp_path, "--deep", "--teacher", DIGITS
    assert "pixels differ by up to 0.000 levels" in completed(here(*deep)).out
    manifest, pairs = read_manifest(tmp_path), read_shard(tmp_path, 0, states=True).as_floats()
    assert pairs.states is not None

    def publish(states: Tensor | None, shown: str | None) -> None:
        record_path(tmp_path, 0).unlink(missing_ok=True)
        write_given(tmp_path, 0, manifest, replace(pairs, states=states))
        found = find_damage(tmp_path, 0, manifest)
        assert found == shown or (shown is not None and found is not None and shown in found)

    publish(None, "members cls, image.png, latent.npy of a pair")
    publish(pairs.states[:, :1], "shape': (1, 1, 8, 8)")
    publish(pairs.states + 0.1, None)
    failed = here(*deep)
    assert failed.code == 1
    assert "of them by more than one" in failed.out


@pytest.mark.parametrize("pack", [1, 2])
def test_states_that_are_not_finite_are_refused(pack: int) -> None:
    zeros = torch.zeros(2, 1, 8, 8)
    manifest = Manifest(
        teacher="t",
        sampler={"steps": 3},
        evaluations=5,
        seed=0,
        teacher_batch_size=2,
        image_shape=(1, 8, 8),
        num_classes=None,
        image_format="npy",
        pairs_per_shard=2,
        pack=pack,
        trajectory=(1.0,),
    )
    pairs = Pairs(zeros, zeros, None, zeros[:, None] / 0)
    samples = list(encode(0, pairs, "npy", pack))
    assert decode(samples, 0, manifest).states is None
    with pytest.raises(ValueError, match="not finite"):
        decode(samples, 0, manifest, states=True)
