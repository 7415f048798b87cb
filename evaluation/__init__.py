"""How faithful explanations are: remove what they call important and watch the prediction.

>>> import xattn
>>> from xattn.evaluation import compare, load_dataset
>>> result = compare(xattn.load(), load_dataset(limit=4), ["rollout", "attention"], ["delete"])
>>> list(result.leaderboard("delete", "abpc").columns)
['method', 'operator', 'metric', 'mean', 'low', 'high', 'n']

`compare` returns a `Comparison`; `OPERATORS` says what removing a token means, `METRICS` what is
made of the scores.
"""

from xattn.data import Dataset, load_dataset
from xattn.evaluation.comparison import Comparison, load
from xattn.evaluation.faithfulness import METRICS, Measurement, Metric
from xattn.evaluation.randomisation import randomisation
from xattn.evaluation.runner import compare
from xattn.evaluation.statistics import Interval, interval, paired_difference
from xattn.model.operators import OPERATORS, Operator, get_operator
from xattn.model.scorer import Scorer

__all__ = [
    "METRICS",
    "OPERATORS",
    "Comparison",
    "Dataset",
    "Interval",
    "Measurement",
    "Metric",
    "Operator",
    "Scorer",
    "compare",
    "get_operator",
    "interval",
    "load",
    "load_dataset",
    "paired_difference",
    "randomisation",
]
