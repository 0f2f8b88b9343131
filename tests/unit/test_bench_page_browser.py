"""The page in a real browser: complete at both ends of screen sizes, light and dark, and silent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import bench_records as made
from browser import INSTALL, Browser, assert_page_is_whole, browsing, find_chromium
from tritonclip_bench.records import flatten_all
from tritonclip_bench.results.page import render_page

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason=f"no Chromium here; {INSTALL}"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def write(folder: Path, *records: object) -> Path:
    path = folder / "page.html"
    path.write_text(render_page(flatten_all((record, f"file{index}") for index, record in enumerate(records))))
    return path


def test_a_page_of_everything(browser: Browser, tmp_path: Path) -> None:
    long = made.load("a-label-without-any-place-to-break-" * 4, broken="died", warnings=["a" * 200])
    path = write(tmp_path, made.curve(), made.baselines(), long, made.load(made.HOSTILE), made.old())
    assert_page_is_whole(browser, path, least_charts=10)


def test_a_page_of_almost_nothing(browser: Browser, tmp_path: Path) -> None:
    assert_page_is_whole(browser, write(tmp_path, made.old()), least_charts=1)


def test_what_the_check_would_find(browser: Browser, tmp_path: Path) -> None:
    """Each fault alone, so that the tests above can fail."""
    html = write(tmp_path, made.old()).read_text()
    unlocked = html.replace("default-src 'none'", "default-src *; script-src 'unsafe-inline'")
    for name, spoiled, message in (
        ("wide", html.replace("<main>", '<main><div style="width: 2000px">x</div>'), "wider than"),
        ("remote", unlocked.replace("<main>", '<main><img src="https://example.invalid/x.png">'), "asked for"),
        ("script", unlocked.replace("<main>", "<main><script>console.error('x')</script>"), "complained"),
        ("flat", html.replace("</style>", ".wide svg { height: 0; width: 0; }</style>"), "without size"),
    ):
        path = tmp_path / f"{name}.html"
        path.write_text(spoiled)
        with pytest.raises(AssertionError, match=message):
            assert_page_is_whole(browser, path, least_charts=1)


def test_dark_is_dark(browser: Browser, tmp_path: Path) -> None:
    path = write(tmp_path, made.load())
    seen = {}
    for scheme in ("light", "dark"):
        browser.open(path, width=1280, scheme=scheme)
        seen[scheme] = browser.run("getComputedStyle(document.body).backgroundColor")
    assert seen == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


def test_no_text_of_a_chart_leaves_it_or_covers_another(browser: Browser, tmp_path: Path) -> None:
    comparison = made.baselines()
    comparison["records"][1]["label"] = "a rather long name of a side of the comparison, for a bar that is narrow"
    path = write(tmp_path, made.curve(), comparison, made.load())
    for width in (360, 1280):
        browser.open(path, width=width)
        assert browser.run(CLIPPED) == []
        assert browser.run(COVERED) == []


TEXTS = """
  const shown = [...document.querySelectorAll('svg[role=img]')].filter(svg => svg.getBoundingClientRect().width);
  const texts = svg => [...svg.querySelectorAll('text')].map(text => [text.textContent, text.getBoundingClientRect()]);
"""
CLIPPED = f"""(() => {{ {TEXTS}
  return shown.flatMap(svg => {{
    const box = svg.getBoundingClientRect();
    return texts(svg).filter(([, t]) => t.left < box.left - 1 || t.right > box.right + 1
      || t.top < box.top - 1 || t.bottom > box.bottom + 1).map(([words]) => words);
  }});
}})()"""
COVERED = f"""(() => {{ {TEXTS}
  return shown.flatMap(svg => texts(svg).flatMap(([words, a], index, all) => all.slice(index + 1).filter(([, b]) =>
    a.left < b.right - 2 && b.left < a.right - 2 && a.top < b.bottom - 5 && b.top < a.bottom - 5
  ).map(([other]) => words + ' / ' + other)));
}})()"""
