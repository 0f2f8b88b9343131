"""Labels and prompt templates as people write them: files with one a line."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from tritonclip_export.errors import ClassifierError

PLACEHOLDER = "{}"


def read_labels(path: Path) -> list[str]:
    """The labels of a file, UTF-8, one a line.

    Raises:
        ClassifierError: the file cannot be read, or names the line that is empty or repeats a label.
    """
    labels = _read_lines(path, "labels")
    first: dict[str, int] = {}
    for number, label in enumerate(labels, 1):
        if label in first:
            raise ClassifierError(
                f"{path}: line {number} is {label!r} again, first on line {first[label]}; give every label once"
            )
        first[label] = number
    return labels


def resolve_templates(given: str) -> tuple[str, ...]:
    """The templates behind a name, of a file with one a line, or the one template given itself.

    Raises:
        ClassifierError: it is none of these, or a line of the file has no `{}`.
    """
    named = named_templates()
    if given in named:
        return named[given]
    if PLACEHOLDER in given:
        return (given,)
    path = Path(given)
    if not path.is_file():
        raise ClassifierError(
            f"no templates {given!r}; give {', '.join(named)}, a template with {PLACEHOLDER} where the label goes, or "
            "a file with one template a line"
        )
    templates = _read_lines(path, "templates")
    for number, template in enumerate(templates, 1):
        if PLACEHOLDER not in template:
            raise ClassifierError(f"{path}: line {number} is {template!r}; put {PLACEHOLDER} where the label goes")
    return tuple(templates)


def named_templates() -> dict[str, tuple[str, ...]]:
    """The sets of templates that ship: data of the client's package, so that both sides have the same ones."""
    document = (files("tritonclip_client") / "templates.json").read_text(encoding="utf-8")
    return {name: tuple(templates) for name, templates in json.loads(document).items()}


def fill(template: str, label: str) -> str:
    """The prompt for one label. Not `str.format`, so that braces in a label or a template are only braces."""
    return template.replace(PLACEHOLDER, label)


def _read_lines(path: Path, what: str) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ClassifierError(f"{path} cannot be read ({error}); give {what} in a UTF-8 file, one a line") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise ClassifierError(f"{path} holds no {what}; give one a line")
    if "" in lines:
        raise ClassifierError(f"{path}: line {lines.index('') + 1} is empty; give {what}, one a line")
    return lines
