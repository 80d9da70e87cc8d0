"""HTML pages from the templates in ``clapcur/templates``, rendered with Jinja2.

A page is one self-contained file: styles, scripts and images are part of it. All values are escaped; a value that a
template uses but that was not passed is an error.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

COMPACT: dict[str, Any] = {"separators": (",", ":")}


def render(template: str, **values: Any) -> str:
    """Return the HTML of a page.

    Parameters
    ----------
    template : str
        A file in ``clapcur/templates``, such as ``report.html``.
    **values : Any
        The variables of the template. Two filters format numbers: ``commas`` (1,234) and ``decimals(n)`` (0.123).
    """
    return _environment().get_template(template).render(values)


def size_of(value: Any) -> int:
    """Return the length in characters of a value as JSON inside a page (``{{ value|tojson }}``)."""
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
