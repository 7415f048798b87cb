"""xattn: explains the predictions of transformer models and measures how far to trust them.

>>> import xattn
>>> model = xattn.load()
>>> explanation = xattn.explain(model, ["A moving, beautifully acted film."], ["rollout"])[0]
>>> explanation.prediction
'positive'
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.explanations import Explanations, explain
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

# Names are looked up when they are first used: importing torch and transformers takes seconds, in
# which the command line must already be able to answer Ctrl-C.
_HOMES = {
    "xattn.explanations": ("Explanations", "explain"),
    "xattn.model": ("Edit", "Model", "load"),
    "xattn.registry": ("register",),
    "xattn.types": ("AttentionMaps", "Attribution", "Batch", "Curve", "Encoding", "Target"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            globals()[name] = value = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'xattn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
