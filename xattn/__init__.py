"""xattn: explains the predictions of transformer models and measures how far to trust them.

>>> import xattn
>>> model = xattn.load()
>>> explanation = xattn.explain(model, ["A moving, beautifully acted film."], ["rollout"])[0]
>>> explanation.prediction
'positive'
"""

from importlib.metadata import version

from xattn.explain import Explanations, explain
from xattn.model import Edit, Model, load
from xattn.registry import register
from xattn.types import AttentionMaps, Attribution, Batch, Curve, Encoding, Target

__version__ = version("xattn")
__all__ = [
    "AttentionMaps",
    "Attribution",
    "Batch",
    "Curve",
    "Edit",
    "Encoding",
    "Explanations",
    "Model",
    "Target",
    "explain",
    "load",
    "register",
]
