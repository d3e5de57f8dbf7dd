"""The state of a training as it was at one step, in host memory, for a writer beside the steps."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.jobs.averages import average_name

AVERAGE = "ema"  # the module that is the result of a training


@dataclass(frozen=True)
class TrainState:
    """Everything a training step changes.

    Attributes:
        modules: Raw and averaged weights, by the name of their file; one of them is `AVERAGE`.
        optimizers: By the name of the file of their moments.
        schedulers: One for each optimiser.
        sigma_rel: Widths of the power-function averages among the modules; see averages.py.
    """

    modules: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    schedulers: tuple[LambdaLR, ...]
    sigma_rel: tuple[float, ...] = ()

    def learning_rates(self, step: int) -> dict[str, float]:
        """Return the rate of each optimiser in a step, counted from 0, named like its setting."""
        return {
            f"{name}_learning_rate".removeprefix("optimizer_"): float(rate * factor(step))
            for name, scheduler in zip(self.optimizers, self.schedulers, strict=True)
            for rate, factor in [(scheduler.base_lrs[0], scheduler.lr_lambdas[0])]
        }

    def sums(self) -> list[Tensor]:
        """Return the sums of the bytes of all weights, on their devices: alike if these are."""
        values = (
            value for module in self.modules.values() for value in module.state_dict().values()
        )
        return [x.reshape(-1).view(torch.uint8).sum(dtype=torch.int64) for x in values]

    def tensors(self) -> dict[tuple[str, str], Tensor]:
        """Return all weights and moments as they are now, by file and by name in that file."""
        found = {
            (file, name): value
            for file, module in self.modules.items()
            for name, value in module.state_dict().items()
        }
        for file, optimizer in self.optimizers.items():
            for index, values in optimizer.state_dict()["state"].items():
                found |= {(file, f"{index}.{name}"): value for name, value in values.items()}
        return found


class HostCopy:
    """A copy of a `TrainState`; its memory is taken once and pinned where there is a GPU.

    Attributes:
        files: What goes into a checkpoint: tensors by file and name.
        average: The averaged model, which has the tensors of `files`.
        averages: Parameters of the power-function averages by width, of the tensors of `files`.
    """

    def __init__(self, state: TrainState) -> None:
        """Take the memory, after a step has made the optimisers' moments."""
        self.state = state
        self.files: dict[str, dict[str, Tensor]] = {
            file: {} for file in (*state.modules, *state.optimizers)
        }
        self._current()
        self.average = _rebuilt(state.modules[AVERAGE], self.files[AVERAGE])
        self.averages = {
            width: {name: self.files[file][name] for name, _ in module.named_parameters()}
            for width in state.sigma_rel
            for file, module in state.modules.items()
            if file == average_name(width)
        }
        self._complete: torch.cuda.Event | None = None

    def take(self) -> None:
        """Copy the state as it is now. Steps may go on at once, also where a GPU still copies."""
        values = self._current()
        copies = [self.files[file][name] for file, name in values]
        with torch.no_grad():
            torch._foreach_copy_(copies, list(values.values()), non_blocking=True)
        if any(value.is_cuda for value in values.values()):
            self._complete = torch.cuda.Event()
            self._complete.record()

    def _current(self) -> dict[tuple[str, str], Tensor]:
        """Return the state as it is now, after taking memory for what is new in it."""
        values = self.state.tensors()
        for (file, name), value in values.items():
            if name not in self.files[file]:
                self.files[file][name] = _like(value)
        return values

    def wait(self) -> None:
        """Wait until all is copied."""
        if self._complete is not None:
            self._complete.synchronize()


def _like(value: Tensor) -> Tensor:
    """Return host memory for a tensor, touched once so that the first copy is no slower."""
    return torch.zeros(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)


def _rebuilt(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a module that has these tensors, by the names of its state."""
    memo: dict[int, Tensor] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        memo[id(parameter)] = nn.Parameter(tensors[name], requires_grad=False)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        memo[id(buffer)] = tensors[name] if name in tensors else buffer.cpu()
    return copy.deepcopy(module, memo)
