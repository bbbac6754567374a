"""The one way from a template beside this module to a page."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("rbnorm.lab", "."), autoescape=True, undefined=StrictUndefined
)


def render(template: str, **values: Any) -> str:
    """A page as text: values are escaped, and a value that the template lacks is an error."""
    return _TEMPLATES.get_template(template).render(**values)
