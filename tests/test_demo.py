"""The page in the browser: what it shows, and the page itself where gradio is installed."""

import json
import signal
import subprocess
import sys
import urllib.request

import pytest
import torch

from data import SHIPPED
from data.teachers.open import open_teacher
from data.teachers.settings import Sampler
from get import GETPipeline
from get.images import from_pil
from get.noise import draw
from pipeline.demo import Demo, shown

from .problems import tiny_get, tiny_vit


@pytest.fixture(scope="module")
def demo() -> Demo:
    pipeline = GETPipeline(tiny_get(channels=1, num_classes=10))
    return Demo(pipeline, open_teacher(SHIPPED / "digits-teacher", Sampler(steps=3), "cpu"))


def test_it_shows_the_images_of_seed_class_and_iterations_beside_the_teachers(demo):
    image, theirs, said = demo(5, 7, 3, 0.0)
    noise, _ = draw(5, [0], (1, 8, 8), 10)
    label = torch.tensor([7])
    with torch.no_grad():
        expected = demo.pipeline.model.images(noise, label, iterations=3)
    assert (from_pil(image) == from_pil(shown(expected))).all()
    assert demo.teacher is not None
    assert theirs is not None
    assert (from_pil(theirs) == from_pil(shown(demo.teacher(noise, label)))).all()
    assert image.width == 384
    assert "teacher: " in said
    other, _, _ = demo(5, 8, 3, 0.0)
    assert (from_pil(image) != from_pil(other)).any()


def test_a_model_without_classes_and_iterations_needs_neither():
    image, theirs, said = Demo(GETPipeline(tiny_vit()), None)(0, None, None, 0.0)
    assert (image.mode, theirs) == ("RGB", None)
    assert said.startswith("student: ")


def test_without_gradio_one_line_says_what_to_install(tmp_path, here, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused = here("demo", "smoke", "--model", tmp_path)
    assert refused.code == 2
    assert "pip install 'get-distillation[demo]'" in refused.err


@pytest.mark.slow
def test_the_page_answers_until_ctrl_c(tmp_path):
    pytest.importorskip("gradio")
    GETPipeline(tiny_get(channels=1, num_classes=10)).save_pretrained(tmp_path)
    flags = "--model", tmp_path, "--teacher", SHIPPED / "digits-teacher", "--port", "0"
    command = [sys.executable, "-m", "pipeline.demo", *map(str, flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = next(line.split()[1] for line in process.stdout if line.startswith("demo "))
        with urllib.request.urlopen(url, timeout=30) as page:
            assert b"gradio" in page.read()
        request = urllib.request.Request(
            f"{url}gradio_api/call/make",
            json.dumps({"data": [5, 7, 3, 0.0]}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            event = json.load(answer)["event_id"]
        with urllib.request.urlopen(f"{url}gradio_api/call/make/{event}", timeout=60) as answer:
            said = answer.read().decode()
        assert "event: complete" in said
        assert "times as long" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
