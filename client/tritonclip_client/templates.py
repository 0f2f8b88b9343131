"""Sets of prompts around a label. Several prompts are averaged into one classifier row (arXiv:2103.00020, 3.1.4)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from .errors import InvalidInputError

PLACEHOLDER = "{}"

# "openai" are the 80 of CLIP's Prompt_Engineering_for_ImageNet.ipynb, "simple" the seven it picked of them. A file, so
# that whoever bakes a classifier reads the same ones.
_FILE = Path(__file__).with_name("templates.json")
TEMPLATES: dict[str, tuple[str, ...]] = {
    name: tuple(templates) for name, templates in json.loads(_FILE.read_text(encoding="utf-8")).items()
}


def resolve_templates(templates: str | Iterable[str]) -> tuple[str, ...]:
    """The templates behind a name, or the given ones.

    Args:
        templates: a name in `TEMPLATES`, one template, or several; a template holds `{}` where the label goes.

    Raises:
        InvalidInputError: an unknown name, no template at all, or one without `{}`.
    """
    if isinstance(templates, str):
        return TEMPLATES[templates] if templates in TEMPLATES else (_checked(templates),)
    chosen = tuple(_checked(template) for template in templates)
    if not chosen:
        raise InvalidInputError(f"no templates given; give {_allowed()}")
    return chosen


def fill(template: str, label: str) -> str:
    """The prompt for one label. Not `str.format`, so that braces in a label or a template are only braces."""
    return template.replace(PLACEHOLDER, label)


def _checked(template: object) -> str:
    if isinstance(template, str) and PLACEHOLDER in template:
        return template
    if template in TEMPLATES:
        raise InvalidInputError(
            f"the name {template!r} given as one of several templates; a name stands alone, several are texts with "
            f"{PLACEHOLDER} where the label goes"
        )
    raise InvalidInputError(f"unknown template {template!r}; give {_allowed()}")


def _allowed() -> str:
    return f"one of the names {', '.join(TEMPLATES)}, or templates with {PLACEHOLDER} where the label goes"
