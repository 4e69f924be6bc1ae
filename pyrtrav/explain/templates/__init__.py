"""The HTML pages' templates; whatever is put into them is escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def rendered(name: str, **values: Any) -> str:
    """Return a template of this folder with the values in it."""
    return _template(name).render(values)


@cache
def _template(name: str) -> Template:
    # Who draws no page needs none of it.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(__name__).joinpath(name).read_text(encoding="utf-8"))
