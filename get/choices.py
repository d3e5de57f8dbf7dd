"""The words that settings choose among, as types: shared by the library and the command line."""

from typing import Literal

Start = Literal["injection", "zeros", "normal"]
"""Where GET's iteration starts: at the injected features, at zeros, or at unit normal noise."""

MapForm = Literal["anchored", "plain"]
"""The map GET iterates: z <- x + (blocks(z) - z), or z <- blocks(z) as published."""

Body = Literal["plain", "residual", "transformer"]
"""What a feature network is made of; see `get.metrics.classifier`."""
