"""HTML pages out of the templates in ``clapcur/templates``, rendered with Jinja2.

A page is one file that loads nothing from elsewhere: style, script and pictures are part of it. Values are escaped,
whatever text is in them; a value that a template names and nobody gave is an error.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

COMPACT: dict[str, Any] = {"separators": (",", ":")}


def render(template: str, **values: Any) -> str:
    """Return the text of a page.

    Parameters
    ----------
    template : str
        A file of ``clapcur/templates``, such as ``report.html``.
    **values : Any
        What the template names. Two filters know our numbers: ``commas`` (1,234) and ``decimals(n)`` (0.123).
    """
    return _environment().get_template(template).render(values)


def size_of(value: Any) -> int:
    """Return how many characters a value takes as JSON inside a page (``{{ value|tojson }}``)."""
    from jinja2.utils import htmlsafe_json_dumps

    return len(htmlsafe_json_dumps(value, **COMPACT))


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("clapcur"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["commas"] = lambda number: f"{number:,}"
    environment.filters["decimals"] = lambda number, places: f"{number:.{places}f}"
    environment.policies["json.dumps_kwargs"] = COMPACT
    return environment
