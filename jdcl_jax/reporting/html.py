"""Self-contained HTML: templates with escaping on, pictures as data URIs."""

import base64
import functools
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from matplotlib.figure import Figure

from jdcl_jax.reporting import formats
from jdcl_jax.reporting.figures import render

MISSING = "\N{EN DASH}"


@functools.cache
def environment() -> jinja2.Environment:
    """The templates beside this file: all that is put in is escaped, a missing name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jdcl_jax.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "count", "duration", "flops"):
        environment.filters[name] = functools.partial(getattr(formats, name), missing=MISSING)
    return environment


def page(template: str, **context: Any) -> bytes:
    """The bytes of a page made from `templates/<template>`."""
    # File names may hold what UTF-8 cannot write; a page with a question mark is better than none.
    return environment().get_template(template).render(**context).encode("utf-8", "replace")


def picture(figure: Figure) -> str:
    """A figure as the data URI of an SVG."""
    return data_uri(render(figure, "svg"), "image/svg+xml")


def data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def pretty(tree: Mapping[str, Any]) -> str:
    """A tree as indented JSON for reading."""
    return json.dumps(tree, indent=2, ensure_ascii=False, default=str)
