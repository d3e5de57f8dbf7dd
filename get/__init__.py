"""GET: one-step generators distilled from diffusion models, and the equilibria behind them.

`from get import GETPipeline` imports torch and diffusers when the name is first used, so that
light modules (`get.errors`, `get.sizes`) cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from get.equilibrium import Solution as Solution
    from get.equilibrium import fixed_point as fixed_point
    from get.models import GET as GET
    from get.models import ViT as ViT
    from get.pipeline_get import GETPipeline as GETPipeline

__version__ = "0.1.0"

_HOMES = {
    "Solution": "get.equilibrium",
    "fixed_point": "get.equilibrium",
    "GET": "get.models",
    "ViT": "get.models",
    "GETPipeline": "get.pipeline_get",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'get' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
