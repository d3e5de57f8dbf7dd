"""What a model costs: parameters, multiply-accumulates, bytes, seconds."""

import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

Name = TypeVar("Name")


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones (GET's position table) included."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def count_macs(call: Callable[[], object]) -> int:
    """Return the multiply-accumulates of all matmuls, convolutions and attentions in `call`.

    No gradients are recorded; `Macs` counts backward passes as well.
    """
    with Macs() as work:
        call()
    return work.total


class Seconds(NamedTuple):
    """How long a call took, turn by turn.

    Attributes:
        wall: Wall time.
        cpu: CPU time of this process, which other work on the machine does not lengthen.
    """

    wall: list[float]
    cpu: list[float]


def in_turns(
    calls: Mapping[Name, Callable[[], object]], turns: int, seconds: float = 0.0
) -> dict[Name, Seconds]:
    """Time calls alternately, so that a change in the machine's speed affects all of them.

    Every call is made once before, to warm up. Work on a GPU is waited for.

    Args:
        calls: What is timed, in this order in every turn.
        turns: Least number of turns.
        seconds: Turns go on for at least this long.
    """
    spent = {name: Seconds([], []) for name in calls}
    for call in calls.values():
        call()
    started, turn = time.perf_counter(), 0
    while turn < turns or time.perf_counter() - started < seconds:
        turn += 1
        for name, call in calls.items():
            before = _read_clocks()
            call()
            after = _read_clocks()
            for durations, began, ended in zip(spent[name], before, after, strict=True):
                durations.append(ended - began)
    return spent


def _read_clocks() -> tuple[float, float]:
    """Return wall and CPU time now, after all work on the GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def median_ratio(some: list[float], others: list[float]) -> float:
    """Return the median over all turns of one duration divided by another."""
    return median(a / b for a, b in zip(some, others, strict=True))


@torch.no_grad()
def images_per_second(call: Callable[[], object], images: int, seconds: float = 2.0) -> float:
    """Return the highest rate of repeated calls.

    The highest, not the mean: other work on the machine can only slow a call down.

    Args:
        call: Makes `images` images and waits for them.
        images: Images per call.
        seconds: How long to repeat the call, at least twice.
    """
    return images / min(in_turns({"call": call}, 2, seconds)["call"].wall)


class Macs(TorchDispatchMode):
    """Counts multiply-accumulates with torch's own table of operations, two operations each.

    Unlike `FlopCounterMode` it needs no module hooks, which break under double backward.

    Attributes:
        total: Number so far.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count its work."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (flops := flop_registry.get(func._overloadpacket)) is not None:
            self.total += flops(*args, **kwargs, out_val=result) // 2
        return result


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors made while it is active, exactly and on any device.

    A storage counts once, from the operation that makes it until its last tensor is deleted, in
    the forward and the backward pass. What a kernel allocates internally does not count. The
    count is deterministic, unlike the resident memory of a process.

    Attributes:
        now: Bytes alive now.
        peak: Most bytes alive at once so far.
    """

    def __init__(self) -> None:
        """Nothing counted yet."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count the storages that it makes."""
        known = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            key, size = storage._cdata, storage.nbytes()
            if key not in known and key not in self._seen:
                self._seen.add(key)
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, size)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _storages(tree: object) -> Iterator[torch.UntypedStorage]:
    return (x.untyped_storage() for x in tree_iter(tree) if isinstance(x, Tensor))
