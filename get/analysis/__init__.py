"""What theory says of equilibrium networks, in numbers: infinite width, and neural collapse."""

from get.analysis.activations import ERF as ERF
from get.analysis.activations import RELU as RELU
from get.analysis.activations import TANH as TANH
from get.analysis.activations import Activation as Activation
from get.analysis.activations import quadrature as quadrature
from get.analysis.collapse import Collapse as Collapse
from get.analysis.collapse import class_means as class_means
from get.analysis.collapse import mean_cosine as mean_cosine
from get.analysis.collapse import neural_collapse as neural_collapse
from get.analysis.collapse import simplex as simplex
from get.analysis.gaussian_process import Posterior as Posterior
from get.analysis.gaussian_process import Regression as Regression
from get.analysis.nngp import Drawn as Drawn
from get.analysis.nngp import WideNetwork as WideNetwork
from get.analysis.nngp import degenerate_pairs as degenerate_pairs
from get.analysis.normality import gaussian_to_uniform as gaussian_to_uniform
from get.analysis.normality import kolmogorov_smirnov as kolmogorov_smirnov
from get.analysis.normality import mixture_kurtosis as mixture_kurtosis
from get.analysis.normality import normal_to_uniform as normal_to_uniform
