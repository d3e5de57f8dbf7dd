"""States on the way of a teacher's sampler, known by the calls of its network: no call is added.

A network is called at states of the ODE's trajectory. Each parametrisation scales its input and
names its time in a way of its own; here a state is always (x_0 + sigma n) / sqrt(1 + sigma^2), with
the noise level sigma: 0 is the image, infinity unit noise. It has about unit variance.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from get.errors import InputError


class Point(NamedTuple):
    """A state that the network is called at.

    Attributes:
        call: Number of the call, from 0.
        sigma: Noise level.
        scale: What the network's input is multiplied by.
    """

    call: int
    sigma: float
    scale: float


def of_scheduler(scheduler: Any, times: Sequence[float]) -> tuple[Point, ...]:
    """Return the states between noise and image that a scheduler of diffusers passes.

    Methods of second order call the network at a trial state and then at the better one of the
    same time: the last counts.

    Args:
        scheduler: One whose steps were made.
        times: The time of every call.
    """
    last = {time: call for call, time in enumerate(times) if time != times[0]}
    found = ((call, _level(scheduler, time)) for time, call in last.items())
    return tuple(Point(call, *level) for call, level in found if level is not None)


def _level(scheduler: Any, time: float) -> tuple[float, float] | None:
    """Return noise level and scale of a network's input; None if they are not known."""
    config = scheduler.config
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if "sigma_data" in config:  # EDM: the input has unit variance
        sigma = math.exp(4 * time)
        return sigma, math.hypot(sigma, config["sigma_data"]) / math.hypot(sigma, 1)
    if alphas is None or config.get("use_flow_sigmas"):  # flow: (1 - s) x_0 + s n
        s = time / config["num_train_timesteps"]
        if not 0 < s < 1 or config.get("invert_sigmas"):
            return None
        return s / (1 - s), 1 / math.hypot(1 - s, s)
    if not 0 <= time <= len(alphas) - 1:
        return None
    low, between = int(time), time % 1
    alpha = float(alphas[low] ** (1 - between) * alphas[min(low + 1, len(alphas) - 1)] ** between)
    return math.sqrt(1 / alpha - 1), 1.0


def choose(points: Sequence[Point], count: int, sampler: str) -> tuple[Point, ...]:
    """Return so many of the states, evenly over the sampler's steps.

    Raises:
        InputError: If there are fewer.
    """
    if count > len(points):
        raise InputError(
            f"expected at most {len(points)} trajectory_points of {sampler}, got {count}; "
            "ask for fewer, or for more --num_inference_steps"
        )
    places = (round((i + 1) * (len(points) + 1) / (count + 1)) - 1 for i in range(count))
    return tuple(points[place] for place in places)
