"""Pages of HTML that need nothing else: no script, no font, no network.

A template next to its page extends page.jinja. It may say `number(12345)` and `text | visible`.
"""

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

# What no browser shows or what would turn the page around: control characters, directions, lone surrogates.
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def render(template: Path, **values: Any) -> str:
    """The page; every text is escaped, and equal values give equal bytes.

    Raises jinja2.UndefinedError for a name that the template uses and `values` lacks.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.globals["number"] = "{:,}".format
    return environment.get_template(template.name).render(**values)


def visible(text: str) -> str:
    """Invisible characters as Python writes them (\\x00, \\u202e); line feeds and tabs stay."""
    return INVISIBLE.sub(lambda match: ascii(match[0])[1:-1], text)
