"""The one adapter through which everything in xattn reaches a model."""

from xattn.model.adapter import Model, Trace
from xattn.model.loading import load
from xattn.model.tap import Edit, Site

__all__ = ["Edit", "Model", "Site", "Trace", "load"]
