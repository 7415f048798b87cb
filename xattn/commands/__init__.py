"""The command line: each module here adds its commands to `app`, in this order."""

from importlib import import_module

from xattn.application import app

__all__ = ["app"]

for _name in (
    "explain",
    "compare",
    "bench",
    "patterns",
    "control",
    "bias",
    "grounding",
    "distill",
):
    import_module(f"xattn.commands.{_name}")
