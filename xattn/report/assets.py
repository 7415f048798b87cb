"""What the pages of this package share: their files, and the environment of their templates."""

from __future__ import annotations

from functools import cache
from importlib.resources import files as resources

import jinja2
from markupsafe import Markup

from xattn.report.answer import between, number


def asset(name: str) -> Markup:
    """Return a file of this package, to stand in a page as it is."""
    return Markup(resources("xattn.report").joinpath(name).read_text(encoding="utf-8"))


@cache
def environment() -> jinja2.Environment:
    """Return where templates come from; what they are given is escaped."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("xattn", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    made.filters["number"] = number
    made.filters["between"] = between
    return made
