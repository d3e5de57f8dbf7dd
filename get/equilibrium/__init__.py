"""Fixed points: the loop, the solvers, and how a solve is differentiated. Knows only torch."""

from get.equilibrium.gradient import Unrolled as Unrolled
from get.equilibrium.picard import Picard as Picard
from get.equilibrium.solve import Outcome as Outcome
from get.equilibrium.solve import Select as Select
from get.equilibrium.solve import Solution as Solution
from get.equilibrium.solve import fixed_point as fixed_point
