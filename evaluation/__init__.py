"""How faithful explanations are: remove what they call important and watch the prediction.

>>> import xattn
>>> from xattn.evaluation import compare, load_dataset
>>> result = compare(xattn.load(), load_dataset(limit=4), ["rollout", "attention"], ["delete"])
>>> list(result.leaderboard("delete", "abpc").columns)
['method', 'operator', 'metric', 'mean', 'low', 'high', 'n']

`compare` returns a `Comparison`; `OPERATORS` says what removing a unit means, `metrics` is the
registry of what is made of the scores.
"""

from xattn.data import Dataset, load_dataset
from xattn.evaluation.case import Bounds, Case
from xattn.evaluation.comparison import Comparison, load
from xattn.evaluation.design import DEFAULT_METRICS, Design
from xattn.evaluation.metric import Metric, MetricDeclaration, metrics
from xattn.evaluation.randomisation import randomisation
from xattn.evaluation.runner import compare
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.evaluation.study import Study
from xattn.model.operators import OPERATORS, Operator, get_operator
from xattn.model.scorer import Scorer

__all__ = [
    "DEFAULT_METRICS",
    "OPERATORS",
    "Bounds",
    "Case",
    "Comparison",
    "Dataset",
    "Design",
    "Interval",
    "Metric",
    "MetricDeclaration",
    "Operator",
    "Scorer",
    "Study",
    "compare",
    "get_operator",
    "interval",
    "load",
    "load_dataset",
    "metrics",
    "paired_difference",
    "randomisation",
]
