"""The command line: each module adds commands to `app`, in the order of their imports here."""

from xattn.application import app

from xattn.commands import explain as _explain  # isort: skip
from xattn.commands import compare as _compare  # isort: skip
from xattn.commands import bench as _bench  # isort: skip

__all__ = ["app"]
