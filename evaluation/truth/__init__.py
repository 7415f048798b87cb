"""Ground truth: problems whose answers are known, and how near each method comes to them.

>>> from xattn.evaluation.truth import PROBLEMS
>>> list(PROBLEMS)[:3]
['planted_encoder', 'planted_decoder', 'copy']
"""

from xattn.evaluation.truth.bench import Standing, ground_truth
from xattn.evaluation.truth.problem import Problem
from xattn.evaluation.truth.problems import PROBLEMS

__all__ = ["PROBLEMS", "Problem", "Standing", "ground_truth"]
