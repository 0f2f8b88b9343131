"""How campaigns count, and the page that is made of it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from tritonclip_chaos.callers import share_out
from tritonclip_chaos.calls import WrongAnswer, compare
from tritonclip_chaos.campaign import NAMES, Context, load
from tritonclip_chaos.commands import chaos
from tritonclip_chaos.errors import ChaosError
from tritonclip_chaos.flood.outcome import Outcome
from tritonclip_chaos.flood.requests import embed_request, read_requests, write_requests
from tritonclip_chaos.gaps import back_after, longest_gap
from tritonclip_chaos.material import draw_image
from tritonclip_chaos.page import BEFORE, PAGE, read_results, render, table
from tritonclip_chaos.records import Record, Sample
from tritonclip_chaos.runner import RESULTS, describe, run_campaigns
from tritonclip_chaos.slopes import slope


def answered(kind: str, begin_s: float, end_s: float) -> Sample:
    return Sample(kind, begin_s, end_s, "answered")


def test_an_outage_of_one_kind_is_not_hidden_by_the_answers_of_another() -> None:
    samples = [answered("image", n - 0.05, n) for n in (0.1, 0.2, 1.9)]
    samples += [answered("text", n / 10 - 0.05, n / 10) for n in range(20)]
    assert longest_gap(samples, 0, 2, ("text",)) == pytest.approx(0.1)
    assert longest_gap(samples, 0, 2, ("image", "text")) == pytest.approx(1.7)
    assert longest_gap(samples, 0, 2, ("image", "clip")) == 2
    bad = [Sample("image", 0.2, 1.0, "failed")]
    assert longest_gap([*samples, *bad], 0, 2, ("image",)) == pytest.approx(1.7)


def test_only_calls_that_began_after_a_fault_show_that_it_is_over() -> None:
    samples = [answered("image", 0.9, 1.2), answered("text", 1.1, 1.5)]
    assert back_after(samples, 1.0, ("image", "text")) is None
    assert back_after(samples, 1.0, ("text",)) == pytest.approx(0.5)
    assert back_after([*samples, answered("image", 1.2, 1.4)], 1.0, ("image", "text")) == pytest.approx(0.5)


def test_a_record_counts_every_call_once_and_keeps_a_few_errors() -> None:
    record = Record("kills", "one", 1)
    record.add([answered("image", 0, 1), Sample("text", 0, 3, "lost", "late"), Sample("text", 0, 2, "lost", "late")])
    record.add([Sample("image", 0, 1, "answered", exact=False)])
    assert (record.tried, record.answered, record.lost, record.worst_s) == (4, 2, 2, 3)
    assert record.examples == ["late"]
    assert record.figures == {"answers not bitwise equal": 1}
    record.check("wrong answers", record.wrong, 0)
    assert record.met
    record.check("goodput", 0.5, 0.9, at_least=True)
    assert not record.met
    assert Record.from_json(json.loads(json.dumps(record.as_json()))) == record


def test_a_value_that_is_no_number_meets_no_target() -> None:
    record = Record("kills", "one", 1)
    record.check("back within", math.nan, 1)
    assert not record.met


def test_answers_are_held_against_their_references() -> None:
    expected = np.eye(2, 4, dtype=np.float32)
    assert compare("it", expected.copy(), expected)
    assert not compare("it", expected + np.float32(1e-4), expected)
    for wrong in (expected[::-1], np.full_like(expected, np.nan), expected[:1], np.zeros_like(expected)):
        with np.errstate(invalid="ignore"), pytest.raises(WrongAnswer):
            compare("it", wrong, expected)


def test_every_kind_of_call_has_callers() -> None:
    for count in (4, 8, 16, 32):
        assert set(share_out(count)) == {"image", "text", "clip", "long text"}, count
    assert len(share_out(16)) == 16


def test_a_seed_decides_what_is_sent() -> None:
    assert draw_image(random.Random("1")) == draw_image(random.Random("1"))
    assert draw_image(random.Random("1")) != draw_image(random.Random("2"))


def test_prepared_requests_survive_their_file(tmp_path: Path) -> None:
    requests = [embed_request("text", [b"a", b"bc"], 5.0), embed_request("image", [b""], 0.5)]
    write_requests(tmp_path / "requests", requests)
    assert read_requests(tmp_path / "requests") == requests


def test_a_flood_is_summed_up() -> None:
    rows = np.array([(0, 0, 1.0, 1.1, 1.5, 0), (0, 1, 1.0, 1.0, 1.02, 1), (1, 0, 2.0, 2.0, 7.0, 2)], np.float64)
    outcome = Outcome(rows, 1, 0, ["1 x late"], seconds=2)
    assert outcome.goodput == 0.5
    assert outcome.seconds_of(0, 0.99, from_due=True) == pytest.approx(0.5)
    assert outcome.seconds_of(1, 0.5, from_due=False) == pytest.approx(0.02)
    record = Record("overload", "one", 1)
    outcome.add_to(record)
    assert (record.tried, record.answered, record.refused, record.lost, record.failed) == (4, 1, 1, 2, 0)


def test_growth_is_only_claimed_where_the_data_prove_it() -> None:
    noise = np.random.default_rng(1).normal(0, 1, 40)
    flat = slope([(float(n), 100 + noise[n]) for n in range(40)])
    steep = slope([(float(n), 100 + noise[n] + n) for n in range(40)])
    assert flat is not None
    assert steep is not None
    assert flat.low_per_s < 0 < flat.high_per_s
    assert steep.low_per_s > 0.9
    assert slope([(0.0, 1.0)]) is None


def test_an_unknown_campaign_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ChaosError, match="there is no campaign 'kill'.*kills"):
        load("kill")
    for name in NAMES:
        assert load(name).name == name


def test_a_server_that_must_survive_is_not_damaged(tmp_path: Path) -> None:
    """Nothing is even started: the address leads nowhere."""
    context = Context(1, tmp_path, address="127.0.0.1:9")
    damaging = [load(name) for name in NAMES if load(name).own_server]
    records = run_campaigns(context, damaging, None)
    assert [record.campaign for record in records] == [
        "kills",
        "pauses",
        "exhaustion",
        "reload",
        "drain",
        "http",
        "cancels",
    ]
    assert all("must survive" in record.skipped for record in records)


def test_the_page_tells_before_and_now_and_what_was_missed(tmp_path: Path) -> None:
    record = Record("kills", "kill -9 tokenizer_0_0", 1, tried=5, answered=4, failed=1, outage_s=0.7, examples=["gone"])
    record.check("back within", 0.7, 1, unit="s")
    record.check("calls failed, refused or lost", 1, 0)
    context = Context(1, tmp_path, tmp_path)
    (tmp_path / "kills.json").write_text(json.dumps(describe(context, load("kills"), [record], 12.0)))
    page = render(read_results(tmp_path), json.loads(BEFORE.read_text()))
    assert "| kill -9 tokenizer_0_0 | now | 5 | 4 | 0 | 1 | 0 | 0 |" in page
    assert "| kill -9 tokenizer_0_0 | 33ed12c | 2572 | 2557 |" in page
    assert "| back within | ≤ 1 s | 0.7 | kill -9 tokenizer_0_0 | yes |" in page
    assert "| calls failed, refused or lost | ≤ 0 | 1 | kill -9 tokenizer_0_0 | **no** |" in page
    assert "**1 of 2**" in page
    assert "`gone`" in page


def test_a_page_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ChaosError, match="there is no result in"):
        read_results(tmp_path)
    assert table(("a", "b"), []).splitlines()[0] == "| a | b |"


def test_the_page_is_what_its_results_say() -> None:
    """Nobody typed into it."""
    rendered = render(read_results(RESULTS), json.loads(BEFORE.read_text(encoding="utf-8")))
    assert PAGE.read_text(encoding="utf-8") == rendered


def test_the_command_knows_its_options() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    chaos.add_arguments(parser)
    args = parser.parse_args(["run", "kills", "--seed", "3", "--minutes", "0.5", "--short"])
    assert (args.campaigns, args.seed, args.minutes, args.short) == (["kills"], 3, 0.5, True)
    for wrong in (["run", "--minutes", "0"], ["run", "--repository", "a", "--address", "b:1"], []):
        with pytest.raises(SystemExit):
            parser.parse_args(wrong)
