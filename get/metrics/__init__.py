"""Image metrics over torch-fidelity; any feature module serves, none is known here."""

from get.metrics.distribution import Scores as Scores
from get.metrics.distribution import features_of as features_of
from get.metrics.distribution import frechet_distance as frechet_distance
from get.metrics.distribution import kernel_distance as kernel_distance
from get.metrics.distribution import precision_recall as precision_recall
from get.metrics.distribution import score as score
from get.metrics.neighbours import nearest_distance as nearest_distance
