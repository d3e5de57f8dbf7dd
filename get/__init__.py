"""GET: one-step generators distilled from diffusion models, and the equilibria behind them."""

from get.equilibrium import Solution as Solution
from get.equilibrium import fixed_point as fixed_point
from get.models import GET as GET
from get.models import ViT as ViT
from get.pipeline_get import GETPipeline as GETPipeline

__version__ = "0.1.0"
