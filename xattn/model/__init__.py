"""The one adapter through which everything in xattn reaches a model."""

from xattn.model.adapter import Model
from xattn.model.loading import load
from xattn.model.tap import Edit, Site
from xattn.model.trace import Trace

__all__ = ["Edit", "Model", "Site", "Trace", "load"]
