"""The page of a benchmark: what stands on it, what does not, and that records cannot break it or write into it."""

from __future__ import annotations

import json
import math
import random
import re
from html import unescape
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import bench_records as made
from tritonclip_bench.errors import RecordError
from tritonclip_bench.records import flatten_all
from tritonclip_bench.results.page import render_page, save_page
from tritonclip_bench.results.page.view import view
from tritonclip_client.main import main

CSS = files("tritonclip_bench.results.page").joinpath("page.css").read_text(encoding="utf-8")
EXAMPLES = sorted((Path(__file__).parents[2] / "docs").glob("*.html"))
CHARTS = {
    "Where the time goes": "stages",
    "Response times": "distribution",
    "Over time": "timeline",
    "Throughput and latency": "curve",
    "Cost and latency": "pareto",
    "Against baselines": "baselines",
}


def page(*records: Any) -> str:
    return render_page(flatten_all((record, f"file{index}") for index, record in enumerate(records)))


def words(html: str) -> str:
    body = html.partition("<body>")[2]
    return " ".join(unescape(re.sub("<[^>]*>", " ", body)).split())


def charts(html: str) -> set[str]:
    return {name for title, name in CHARTS.items() if f"<h3>{title}</h3>" in html}


def test_the_page_of_one_run_tells_what_it_is() -> None:
    told = words(page(made.load("quiet machine")))
    for fact in (
        *("quiet machine", "demo · ViT-B-32 · float32 · A CPU", "100 ± 2 images per second"),
        *(
            "95 % confidence, 3 runs",
            "$1.39 per million images",
            "720,000 images",
            "$0.5 an hour for g4dn.xlarge, 2026-11-01",
        ),
        *("4, of which 2 usable", "7.80 GiB", "NVIDIA L4", "on this machine, beside the load generator"),
        *("8 users, one request in flight each", "ab12" * 16, "numpy 1.26.4", "50.0 % busy, 2.0 GiB, 60.0 W"),
    ):
        assert fact in told, fact


def test_charts_stand_where_there_is_data_and_nowhere_else() -> None:
    assert charts(page(made.load())) == {"stages", "distribution", "timeline"}
    assert charts(page(made.curve())) == {"stages", "distribution", "timeline", "curve", "pareto"}
    assert charts(page(made.baselines())) == {"stages", "distribution", "timeline", "pareto", "baselines"}
    assert charts(page(made.old())) == {"stages"}
    bare = made.old()
    bare["results"]["stages"] = {}
    html = page(bare)
    assert charts(html) == set()
    assert 'role="img"' not in html
    assert "No price was given" in html


def test_every_chart_is_well_formed_named_and_has_its_values_in_a_table() -> None:
    html = page(made.curve(), made.baselines(), made.load())
    found = re.findall(r'<svg viewBox="0 0 \d+ \d+" .*?</svg>', html, re.DOTALL)
    assert len(found) == 2 * html.count("<figure>") > 20
    for svg in found:
        root = ElementTree.fromstring(svg)
        assert [root[0].tag, root[1].tag] == ["title", "desc"]
        assert all(child.text for child in root[:2])
        numbers = re.findall(r'="(-?[\d.]+)"', svg)
        assert all(-1 <= float(number) <= 1000 for number in numbers)
        assert "nan" not in svg
    names = re.findall(r'\bid="([^"]+)"', html)
    assert len(names) == len(set(names))
    for figure in re.findall("<figure>.*?</figure>", html, re.DOTALL):
        assert figure.count("<table>") == 1
        assert figure.count("<td") > 3


def test_stages_hold_the_parts_of_server_client_and_network() -> None:
    html = page(made.load())
    figure = html.partition("<h3>Where the time goes</h3>")[2].partition("</figure>")[0]
    rows = re.findall("<tr>(.*?)</tr>", figure)
    cells = [re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    head = cells[0]
    table = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in cells[1:]}
    assert list(table) == ["preprocess", "image_encoder", "client: embed_image"]
    assert table["preprocess"]["queue, ms"] == "1"
    assert table["preprocess"]["mean batch"] == "2.50"
    client = table["client: embed_image"]
    # Of 1.1 x 10.1 ms for clients, 7 in the server, and 0.3 to serialise.
    assert float(client["network and waiting, ms"]) == pytest.approx(11.11 - 7.0 - 0.3 - 0.2, abs=0.01)
    assert client["serialise, ms"] == "0.300"


def test_a_comparison_has_a_chart_for_each_load_with_its_paired_ratios() -> None:
    record = made.baselines()
    for side, load in zip(("tritonclip", "theirs", "ceiling"), record["records"], strict=True):
        load |= {"side": side, "scenario": "image", "pattern": "8x1"}
    record["records"][2] |= {"pattern": "1x8", "plan": {**load["plan"], "users": 1, "batch_size": 8}}
    texts = made.load("tritonclip, text 8x1", (500.0,), side="tritonclip", scenario="text", pattern="8x1")
    record["records"] += [texts, {**texts, "side": "theirs", "label": "theirs, text 8x1"}]
    row = {"scenario": "image", "pattern": "8x1", "baseline": "theirs", "ratio": 1.87}
    record["ratios"] = [row]
    html = page(record)
    assert html.count("<h3>Against baselines: images, 8 users, 1 in a request</h3>") == 2
    first = words("<body>" + html.partition("<h3>Against baselines")[2].partition("</figure>")[0])
    assert "61.0 ± 2.5 · 1.87 x" in first
    assert "ceiling 104 · 0.96 x" in first
    assert "how many times as fast tritonclip is" in first


def test_what_comes_from_records_is_text_and_nothing_else() -> None:
    hostile = made.load(made.HOSTILE, warnings=[made.HOSTILE], broken=made.HOSTILE)
    hostile["server"]["spec"]["name"] = hostile["client_machine"]["cpu"] = made.HOSTILE
    hostile["results"]["stages"][made.HOSTILE] = hostile["results"]["stages"]["preprocess"]
    hostile["results"]["gpus"][0]["name"] = made.HOSTILE
    hostile["client_versions"][made.HOSTILE] = made.HOSTILE
    hostile["cost"]["price"] = {**made.PRICE, "instance": made.HOSTILE, "source": made.HOSTILE}
    hostile["repeats"][0]["total"]["failure_reasons"] = {made.HOSTILE: 1}
    for record in (hostile, made.curve(made.HOSTILE), {**made.baselines(), "records": [hostile, hostile]}):
        html = page(record, made.load("beside it"))
        assert "alert(1)" in html
        assert "<script" not in html
        assert "alert(1)</script>" not in html
        # Inside an attribute a quote would end it.
        assert not re.search(r'="[^"]*alert\(1\)[^"]*["\'](?=&|\')', html)


def test_the_page_asks_for_nothing_outside_itself() -> None:
    html = page(made.curve(), made.load())
    assert re.findall(r'(?:src|href|action|data)="([^"]*)"', html) == ["data:,"]
    assert not re.search(r"url\(|@import|https?:|//[a-z]", html)
    assert "default-src 'none'" in html


def test_a_broken_run_and_warnings_are_conspicuous() -> None:
    broken = made.load("half", broken="the server died", warnings=["the load generator used 0.95 of one core"])
    broken["repeats"][2]["broken"] = "the server died"
    broken["repeats"][0]["total"] |= {"failures": 2, "failure_reasons": {"UNAVAILABLE: busy": 2}}
    html = page(broken, made.load("whole"))
    alert = words("<body>" + html.partition('role="alert"')[2].partition("</div>")[0])
    assert "Not whole" in alert
    assert alert.count("half: the server died") == 1
    assert "half: the load generator used 0.95 of one core" in words(html)
    assert "2 failed: UNAVAILABLE: busy" in words(html)
    assert "The greatest throughput: whole" in words(html)
    # In the table of the settings, and two of its raw runs.
    assert html.count("<tr class=flagged>") == 3
    assert "Not whole" not in page(made.load())


def test_texts_do_not_head_a_page_of_images() -> None:
    images, texts = made.load("images"), made.load("texts", items_per_s=(9000.0, 9001.0, 9002.0))
    texts["plan"]["scenario"] = "text"
    texts["cost"] = None
    assert "The greatest throughput: images" in words(page(images, texts))
    assert "The greatest throughput: texts" in words(page(texts, images))


def test_doubts_about_the_price_are_warnings() -> None:
    doubted = made.load(cost={**made.load()["cost"], "warnings": ["old price"], "priced_as_if": "as if it were a T4"})
    told = words(page(doubted))
    assert "old price" in told
    assert "as if it were a T4" in told
    stale = made.load(cost={**made.load()["cost"], "price": {**made.PRICE, "stale": "cut in June"}})
    assert "the price is doubtful: cut in June" in words(page(stale))


def test_the_cost_stands_beside_the_rate_that_it_is_counted_from() -> None:
    table = view(flatten_all([(made.load(items_per_s=(90.0, 100.0, 140.0)), "x")]))["cost"]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["items/s, median run"], row["per million items"]) == ("100", "$1.39")


def test_a_spot_price_is_told_from_that_on_demand() -> None:
    spot = made.load(cost={**made.load()["cost"], "price": {**made.PRICE, "kind": "spot"}})
    assert "g4dn.xlarge:spot" in words(page(spot))


def test_the_front_says_that_other_work_is_compared() -> None:
    labels = made.load("labels")
    labels["plan"]["scenario"] = "clip"
    told = words(page(made.load("images"), labels))
    assert "the runs are of different work" in told
    assert "the runs are of different work" not in words(page(made.load("one"), made.load("two")))


def test_other_currencies_are_kept() -> None:
    told = words(page(made.load(cost={**made.load()["cost"], "price": {**made.PRICE, "currency": "EUR"}})))
    assert "€1.39" in told
    assert "EUR per million items" not in told
    assert "$" not in told


def test_a_page_without_runs_is_refused() -> None:
    with pytest.raises(RecordError, match="hold no run"):
        render_page([])


def test_a_record_that_was_just_made_becomes_a_page(tmp_path: Path) -> None:
    save_page(None, made.load())
    save_page(tmp_path / "page.html", {**made.load(None), "warnings": ("a tuple",)})
    html = (tmp_path / "page.html").read_text()
    assert "<h1>page</h1>" in html
    assert "a tuple" in html


def test_no_value_of_the_wrong_kind_breaks_the_page() -> None:
    junk = (None, "text", -1.0, 0, [], [1, "x"], {}, math.nan, True, 1e308)
    dice = random.Random(5)
    for _ in range(30):
        record = made.load()
        record["repeats"] = [record["results"], *record["repeats"][:1]]
        for _ in range(3):
            _spoil(record, dice, dice.choice(junk))
        try:
            page(record, made.load("beside it"))
        except RecordError:
            continue


def _spoil(value: Any, dice: random.Random, junk: Any) -> None:
    """Put `junk` somewhere inside a record, but in the keys that `read_record` has checked."""
    keys = [key for key in value if key not in ("schema", "kind", "repeats", "label")]
    key = dice.choice(keys)
    if isinstance(value[key], dict) and value[key] and (key in ("results", "total") or dice.random() < 0.8):
        _spoil(value[key], dice, junk)
    else:
        value[key] = junk


def _variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", css))


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_contrast_in_both_schemes() -> None:
    light_css, _, dark_css = CSS.partition("prefers-color-scheme: dark")
    light = _variables(light_css)
    for colours in (light, light | _variables(dark_css.partition("\n}\n")[0])):
        pairs = [(name, "paper") for name in ("ink", "soft", "link")]
        pairs += [("warn-ink", "warn-paper"), ("bad-ink", "bad-paper")]
        assert {pair: _contrast(colours[pair[0]], colours[pair[1]]) >= 4.5 for pair in pairs} == dict.fromkeys(
            pairs, True
        )
        # Lines and points that carry the data.
        assert all(_contrast(colours[f"c{index}"], colours["paper"]) >= 3 for index in range(1, 7))
    assert _contrast("#ffffff", "#000000") == pytest.approx(21)


def test_the_command_writes_page_table_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "given.json"
    given.write_text(json.dumps(made.curve()))
    out = {name: tmp_path / f"all.{name}" for name in ("html", "csv", "json")}
    options = [word for name, path in out.items() for word in (f"--{name}", str(path))]
    assert main(["bench", "report", str(given), str(given), *options]) == 0
    assert "6 runs of 6 settings" in capsys.readouterr().out
    assert len(out["csv"].read_text().splitlines()) == 7
    again = tmp_path / "again.html"
    assert main(["bench", "report", str(out["json"]), "--html", str(again)]) == 0
    assert again.read_text() == out["html"].read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to write; give --html FILE, --csv FILE or --json FILE"),
        (["--html", "/no/such/folder/page.html"], "cannot be written"),
        (["--html", "{tmp}/page.html", "{tmp}/none.json"], "none.json cannot be read"),
        (["--csv", "{tmp}/runs.csv", "{tmp}/empty.json"], "hold no run"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "empty.json").write_text(json.dumps({**made.curve(), "records": []}))
    given = [word.format(tmp=tmp_path) for word in arguments]
    if not any(word.endswith(".json") for word in given):
        given.append(str(tmp_path / "empty.json"))
    assert main(["bench", "report", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty.json"]


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[2] / "docs").glob("*.html")), ids=lambda path: path.name
)
def test_the_pages_in_the_docs_tell_of_no_machine(example: Path) -> None:
    html = example.read_text(encoding="utf-8")
    assert made.private_details(html) == []
    assert "<h2>Every raw run</h2>" in html


def test_what_tells_of_a_machine_is_found() -> None:
    for told in (
        "/home/me/x",
        "(/root/a)",
        "127.0.0.1:8001",
        "10.1.2.3",
        "192.168.0.7",
        "localhost:8001",
        "172.17.0.2",
    ):
        assert made.private_details(f"measured at {told} today"), told
    for told in (
        "Triton 2.51.0",
        "pkg/billing/prices.go",
        "10.0 to 20.0",
        "Pillow 10.4.0",
        "2026-11-21",
        "numpy 1.26.4",
    ):
        assert made.private_details(f"measured with {told} today") == [], told
