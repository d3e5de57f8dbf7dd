"""Fixed points: the loop, the solvers, and how a solve is differentiated. Imports only torch."""

from get.equilibrium.anderson import Anderson as Anderson
from get.equilibrium.broyden import Broyden as Broyden
from get.equilibrium.carry import Carry as Carry
from get.equilibrium.delta import Apply as Apply
from get.equilibrium.delta import DeltaMemory as DeltaMemory
from get.equilibrium.delta import Unit as Unit
from get.equilibrium.delta import direct as direct
from get.equilibrium.gradient import Adjoint as Adjoint
from get.equilibrium.gradient import Gradient as Gradient
from get.equilibrium.gradient import Implicit as Implicit
from get.equilibrium.gradient import Phantom as Phantom
from get.equilibrium.gradient import Unrolled as Unrolled
from get.equilibrium.gradient import recomputed as recomputed
from get.equilibrium.iterate import Select as Select
from get.equilibrium.iterate import Solver as Solver
from get.equilibrium.jacobian import jacobian_penalty as jacobian_penalty
from get.equilibrium.jacobian import spectral_radius as spectral_radius
from get.equilibrium.outcome import Outcome as Outcome
from get.equilibrium.picard import Picard as Picard
from get.equilibrium.reversible import Reversible as Reversible
from get.equilibrium.solve import Solution as Solution
from get.equilibrium.solve import fixed_point as fixed_point
