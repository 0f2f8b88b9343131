"""Labels and templates from files, and what is refused of them."""

from pathlib import Path

import pytest

from tritonclip_client.templates import TEMPLATES
from tritonclip_export.errors import ClassifierError
from tritonclip_export.repository.classifier.prompts import fill, named_templates, read_labels, resolve_templates


def test_both_sides_have_the_same_templates() -> None:
    assert named_templates() == TEMPLATES
    assert (len(TEMPLATES["openai"]), len(TEMPLATES["simple"])) == (80, 7)


def test_a_name_a_text_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffa {} of mine\n  two {} of {}  \n\n")
    assert resolve_templates("photo") == ("a photo of a {}.",)
    assert resolve_templates("a {} indeed") == ("a {} indeed",)
    assert resolve_templates(str(file)) == ("a {} of mine", "two {} of {}")
    assert fill("two {} of {0} {}", "{x}") == "two {x} of {0} {x}"


def test_labels_are_lines_without_the_space_around_them(tmp_path: Path) -> None:
    (tmp_path / "labels").write_bytes("\ufeff crème brûlée \r\ndog_house\r\n".encode())
    assert read_labels(tmp_path / "labels") == ["crème brûlée", "dog_house"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no labels; give one a line"),
        (" \n\n", "holds no labels"),
        ("cat\n\ndog\n", "line 2 is empty"),
        ("cat\ndog\ncat\n", "line 3 is 'cat' again, first on line 1; give every label once"),
        (b"cat\xff\n", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "labels"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ClassifierError, match=message):
        read_labels(path)


def test_templates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="no templates 'imagenet'; give plain, photo, simple, openai, a template"):
        resolve_templates("imagenet")
    path = tmp_path / "templates"
    path.write_text("a photo of a {}\na photo\n")
    with pytest.raises(ClassifierError, match="line 2 is 'a photo'; put {} where the label goes"):
        resolve_templates(str(path))
