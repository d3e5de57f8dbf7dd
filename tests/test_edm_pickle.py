"""EDM pickles that are read: everything they hold, and nothing in them executed."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data.teachers.edm.checkpoint import build
from data.teachers.edm.pickle_reader import read_pickle
from get.errors import InputError

from .edm_files import (
    KINDS,
    Call,
    Denoiser,
    Persistent,
    denoiser_of,
    dumps,
    instance,
    refusal,
    snapshot,
    tiny,
    wrapped,
    write,
    write_kind,
)
from .edm_files import _nothing_was_executed as _nothing_was_executed
from .edm_files import pkl as pkl


@pytest.mark.parametrize(
    ("kind", "protocol"), [(kind, 4) for kind in KINDS] + [("ve in EDM", n) for n in (2, 3, 5)]
)
def test_a_checkpoint_is_read_whole(pkl: Path, kind: str, protocol: int) -> None:
    wrapper, arguments = KINDS[kind]
    denoiser = denoiser_of(wrapper, arguments)
    write(pkl, lambda: snapshot(wrapped(denoiser, wrapper, arguments)), protocol)
    assert b"executed" in pkl.read_bytes()  # the trap is there
    checkpoint = read_pickle(pkl)
    assert (checkpoint.wrapper, checkpoint.arguments) == (wrapper, arguments)
    expected = denoiser.state_dict()
    assert list(checkpoint.state) == list(expected)
    assert all(torch.equal(checkpoint.state[name], expected[name]) for name in expected)
    ours = Denoiser(*build(checkpoint))
    assert asdict(ours.model.config) == asdict(denoiser.model.config)
    x, sigma = torch.randn(2, 3, 8, 8), torch.tensor(0.7)
    assert torch.equal(ours(x, sigma, None), denoiser(x, sigma, None))


def test_numbers_recorded_in_the_modules_are_read(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM")
    recorded = read_pickle(pkl).attributes
    assert recorded["sigma_data"] == 0.5
    assert recorded["model.enc.4x4_down.skip_scale"] == 0.5**0.5
    assert recorded["model.enc.4x4_down.conv0.down"] is True
    assert recorded["model.dec.4x4_in0.num_heads"] == 1


def test_an_easy_dictionary_may_have_an_empty_state(pkl: Path) -> None:
    data, made = dumps(tiny, 2), b"cdnnlib.util\nEasyDict\n"
    start = data.index(b")\x81q", data.index(made))
    end = start + 4  # NEWOBJ and its place in the memo
    pkl.write_bytes(data[:end] + b"}b" + data[end:])
    assert read_pickle(pkl).wrapper == "EDMPrecond"


def test_scalars_of_numpy_1_are_read(pkl: Path) -> None:
    write_kind(pkl, "vp in EDM", protocol=2)
    data = pkl.read_bytes()
    assert data.count(b"cnumpy._core.multiarray\nscalar\n") == 1
    pkl.write_bytes(data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))
    assert read_pickle(pkl).attributes["model.enc.4x4_down.skip_scale"] == 0.5**0.5


def views(*arguments: object) -> Callable[[], object]:
    """Return a tiny checkpoint with a tensor (offset, size, stride) of a storage of 0 to 11."""

    def content() -> object:
        rebuild, given = torch.arange(12.0).__reduce_ex__(4)
        return tiny(_buffers={"view": Call(rebuild, given[0], *arguments, False, OrderedDict())})

    return content


def test_offsets_and_strides_are_honoured(pkl: Path) -> None:
    checkpoint = read_pickle(write(pkl, views(1, (2, 3), (1, 4))))
    assert checkpoint.state["view"].tolist() == [[1, 5, 9], [2, 6, 10]]


VIEWS = {
    "beyond the end": (1, (12,), (1,)),
    "an offset before the start": (-1, (2,), (1,)),
    "a stride backwards": (11, (12,), (-1,)),
    "a stride backwards and one forwards": (0, (2, 3), (-1, 2)),
    "a stride beyond": (0, (2,), (12,)),
    "repeated without end": (0, (10**12,), (0,)),
    "a huge product": (0, (2**40, 2**40), (0, 0)),
    "a huge size": (0, (2**100,), (1,)),
    "a huge stride": (0, (1,), (2**100,)),
    "a negative size": (0, (-3,), (1,)),
    "an empty size": (0, (0,), (1,)),
    "too few strides": (0, (3, 4), (4,)),
    "a size of text": (0, ("3",), (1,)),
    "many dimensions": (0, (1,) * 99, (1,) * 99),
    "an offset of text": ("0", (3,), (1,)),
}


@pytest.mark.parametrize("arguments", VIEWS.values(), ids=VIEWS)
def test_a_tensor_that_does_not_fit_its_storage_is_refused(pkl: Path, arguments: tuple) -> None:
    write(pkl, views(*arguments))
    with pytest.raises(InputError, match=r"does not fit its storage|_rebuild_tensor_v2|of 101 bit"):
        read_pickle(pkl)


def nested(depth: int) -> object:
    module = torch.nn.Module()
    state = instance(module)
    for _ in range(depth):
        state = instance(module) | {"_modules": {"a": Persistent("Linear", state)}}
    return {"ema": Persistent("EDMPrecond", state)}


def twice() -> object:
    child = Persistent("Linear", instance(torch.nn.Module()))
    return tiny(_modules={"a": child, "b": child})


def described(**changes: object) -> Callable[[], object]:
    """Return a tiny checkpoint whose wrapper describes itself otherwise."""

    def content() -> object:
        ema = Persistent("EDMPrecond", instance(torch.nn.Module()))
        ema.description |= changes
        return {"ema": ema}

    return content


def test_the_layout_that_is_changed_below_is_read(pkl: Path) -> None:
    assert read_pickle(write(pkl, described())).wrapper == "EDMPrecond"


LAYOUTS: dict[str, Callable[[], object]] = {
    "another version": described(version=7),
    "a function": described(type="func"),
    "one more field": described(meta={}),
    "no modules": lambda: {"ema": Persistent("E", {"_init_args": (), "_init_kwargs": {}})},
    "arguments by place": lambda: tiny(_init_args=(32,)),
    "an argument that is no plain value": lambda: tiny(_init_kwargs={"a": [[1]]}),
    "an argument without a name": lambda: tiny(_init_kwargs={1: 1}),
    "a module that is none": lambda: tiny(_modules={"model": "Linear"}),
    "a parameter that is none": lambda: tiny(_parameters={"weight": 1.0}),
    "modules without end": lambda: nested(40),
    "a module twice": twice,
    "no ema": lambda: {"state_dict": {}},
}


@pytest.mark.parametrize("content", LAYOUTS.values(), ids=LAYOUTS)
def test_objects_of_another_layout_are_refused(pkl: Path, content: Callable[[], object]) -> None:
    refusal(write(pkl, content))
