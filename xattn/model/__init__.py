"""The one adapter through which everything in xattn reaches a model."""

from xattn.model.ablation import AblateHeads, mean_outputs
from xattn.model.adapter import Model
from xattn.model.generation import Generation
from xattn.model.interventions import Intervention
from xattn.model.loading import load
from xattn.model.marks import mark
from xattn.model.reading import Mass
from xattn.model.replacing import Frozen, Permuted, Uniform
from xattn.model.scaling import Boost, Scale, Suppress, ZeroValues
from xattn.model.steering import HeadProfile, profile_heads, steer
from xattn.model.tap import Edit, Site
from xattn.model.trace import Trace

__all__ = [
    "AblateHeads",
    "Boost",
    "Edit",
    "Frozen",
    "Generation",
    "HeadProfile",
    "Intervention",
    "Mass",
    "Model",
    "Permuted",
    "Scale",
    "Site",
    "Suppress",
    "Trace",
    "Uniform",
    "ZeroValues",
    "load",
    "mark",
    "mean_outputs",
    "profile_heads",
    "steer",
]
