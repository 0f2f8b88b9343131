"""The comparison with baselines: what is sent, what is measured when, what the figures say."""

from __future__ import annotations

import base64
import email.parser
import email.policy
import json
import os
import sys
import threading
from argparse import Namespace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from baselines import answers, http_api, result, run
from baselines.environments import SideError
from baselines.in_process import measure_loop
from baselines.patterns import BASELINES, EXPECTED, OURS, PATTERNS, SCENARIOS, Pattern, is_measured, measured_as
from baselines.sides import HTTP_LOCUSTFILE, HttpServer, Load
from tritonclip_bench.errors import WrongAnswerError
from tritonclip_bench.load.loadrun import run_load
from tritonclip_bench.results.repeats import SEED_STEP

DIM = 4
ONE, EIGHT, BATCHED = PATTERNS[0], PATTERNS[1], PATTERNS[3]


def _plan(**changes):
    defaults = {"scenarios": SCENARIOS, "patterns": PATTERNS, "sides": BASELINES, "seconds": 3, "warmup": 1}
    return Namespace(**{**defaults, **changes})


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _results(rate, failures=0, p50=1.0, clients=8):
    """Of `clients` with one item each, whose answers take so long that they get `rate` items a second."""
    times = {"p50": p50, "p99": 2 * p50, "mean": clients / rate * 1000 - 5} if rate else None
    total = {"items_per_s": rate, "failures": failures, "latency_ms": times}
    return {"total": total, "client_cpu_cores": 0.25, "client": {"check_ms": 5}}


def test_every_baseline_has_an_expectation_for_each_of_its_patterns():
    for baseline, expected in EXPECTED.items():
        names = [pattern.name for pattern in PATTERNS if is_measured(baseline, pattern)]
        assert [list(expected[scenario]) for scenario in SCENARIOS] == [names, names]
        assert baseline in run.FACTORIES


def test_all_sides_of_a_pattern_get_the_same_texts_and_no_texts_come_twice():
    cells = {}
    for number in (1, 2, 3):
        for side, load in run.schedule(_plan(), number):
            cells.setdefault((number, load.scenario, load.seed), set()).add(side)
    seeds = [seed for _, _, seed in cells]
    assert len(set(seeds)) == len(seeds) == 3 * len(SCENARIOS) * len(PATTERNS)
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) >= SEED_STEP
    # The probes of the answers come before.
    assert min(seeds) > answers.SEED + answers.TEXTS
    assert all({OURS, "fastapi", "infinity"} <= sides for sides in cells.values())


def test_every_other_round_goes_backwards():
    plan = _plan(scenarios=("image",), patterns=(ONE,))
    first, second = ([side for side, _ in run.schedule(plan, number)] for number in (1, 2))
    assert first == [OURS, "fastapi", "infinity", "onnxruntime", "ceiling"]
    assert second == first[::-1]


def test_without_a_server_a_batch_is_measured_once_for_all_patterns_that_it_stands_for():
    loads = [load for side, load in run.schedule(_plan(scenarios=("text",)), 1) if side == "onnxruntime"]
    assert [load.pattern for load in loads] == [ONE, Pattern(1, 8)]
    assert {measured_as("ceiling", pattern) for pattern in PATTERNS[1:]} == {Pattern(1, 8)}
    assert measured_as("infinity", BATCHED) == BATCHED


def test_requests_of_many_items_are_measured_for_longer():
    by_pattern = {load.pattern: load.seconds for side, load in run.schedule(_plan(), 1) if side == OURS}
    assert by_pattern == {ONE: 3, EIGHT: 3, Pattern(16, 1): 3, BATCHED: 6}


def test_ratios_are_of_pairs_from_the_same_round():
    rates = {1: (30.0, 20.0), 2: (40.0, 16.0), 3: (33.0, 30.0)}
    runs = {(OURS, "image", "8x1", number): _results(ours) for number, (ours, _) in rates.items()}
    runs |= {("infinity", "image", "8x1", number): _results(theirs) for number, (_, theirs) in rates.items()}
    # A round without its partner, and one in which nothing was answered, say nothing.
    runs[OURS, "image", "8x1", 4] = _results(90.0)
    runs[OURS, "image", "8x1", 5], runs["infinity", "image", "8x1", 5] = _results(9.0), _results(0.0)
    (row,) = result.ratios(runs)
    assert row["ratios"] == pytest.approx([1.5, 2.5, 1.1])
    assert (row["ratio"], row["lowest"], row["highest"]) == pytest.approx((1.5, 1.1, 2.5))
    assert (row["baseline"], row["ceiling"], row["expected"]) == ("infinity", False, 1.7)


def test_the_ceiling_is_called_so_and_its_batch_stands_for_all_patterns_of_many():
    runs = {
        (OURS, "text", pattern.name, 1): _results(90.0, clients=pattern.clients * pattern.batch) for pattern in PATTERNS
    }
    runs["ceiling", "text", "1x8", 1] = _results(100.0)
    rows = result.ratios(runs)
    assert [(row["pattern"], row["ceiling"]) for row in rows] == [(name, True) for name in ("8x1", "16x1", "4x8")]
    assert [row["ratio"] for row in rows] == pytest.approx([0.9] * 3)


def test_the_throughput_of_a_closed_loop_does_not_jump_with_the_edge_of_the_window():
    # Eight clients whose answers come together every 400 ms: a window of 2 s holds 32 or 40 of them.
    total = {"items_per_s": 16.0, "failures": 0, "latency_ms": {"mean": 399.0}}
    found = {"total": total, "client": {"check_ms": 1.0}}
    assert result.items_per_s(found, "infinity", EIGHT) == 20.0
    # Nobody waits there, and there failures take part of the time.
    assert result.items_per_s(found, "ceiling", Pattern(1, 8)) == 16.0
    assert result.items_per_s({**found, "total": {**total, "failures": 1}}, "infinity", EIGHT) == 16.0


def _record():
    load = {"scenario": "image", "pattern": "8x1"}
    runs = {(OURS, "image", "8x1", 1): _results(30.0), ("fastapi", "image", "8x1", 1): _results(20.0, failures=3)}
    loads = [
        {**load, "side": key[0], "repeats": [results], "throughput": [results["total"]["items_per_s"]]}
        for key, results in runs.items()
    ]
    sides = {OURS: {"what": "a"}, "fastapi": {"what": "b"}, "infinity": {"what": "c", "reason": "no such package"}}
    return {"sides": sides, "records": loads, "ratios": result.ratios(runs), "warnings": ["busy"], "broken": "Ctrl-C"}


def test_the_table_tells_figures_failures_and_what_is_missing():
    text = result.render(_record())
    (line,) = [line for line in text.splitlines() if line.startswith("fastapi")]
    assert line.split() == [
        "fastapi",
        "20.0",
        "20.0",
        "20.0",
        "1.0",
        "2.0",
        "1.50",
        "1.50",
        "1.50",
        "1.35",
        "0.25",
        "3",
    ]
    assert "images, 8 clients, 1 in a request" in text
    assert "infinity was left out: no such package" in text
    assert "warning: busy" in text
    assert "broken: Ctrl-C" in text


def test_the_markdown_has_the_same_cells():
    text = result.render(_record(), markdown=True)
    assert "| fastapi | 20.0 | 20.0 | 20.0 | 1.0 | 2.0 | 1.50 | 1.50 | 1.50 | 1.35 | 0.25 | 3 |" in text


def test_images_reach_fastapi_as_files_of_a_form():
    images = [b"\xff\xd8one\r\n--", b"\x00two"]
    request = http_api.APIS["fastapi"].images(images)
    head = f"Content-Type: {request.content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    parts = list(message.iter_parts())
    assert [part.get_payload(decode=True) for part in parts] == images
    assert {part.get_param("name", header="content-disposition") for part in parts} == {"files"}


def test_images_and_texts_reach_infinity_as_json():
    body = json.loads(http_api.APIS["infinity"].images([b"\xff\xd8one"]).body)
    kind, _, data = body["input"][0].partition(",")
    assert (kind, base64.b64decode(data)) == ("data:image/jpeg;base64", b"\xff\xd8one")
    assert (body["modality"], body["encoding_format"]) == ("image", "base64")
    assert json.loads(http_api.APIS["infinity"].texts(['a "cat"']).body)["input"] == ['a "cat"']


def _answer(vectors):
    rows = [base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode() for row in vectors]
    return json.dumps({"data": [{"embedding": row} for row in rows]}).encode()


def test_an_answer_is_read_and_what_is_none_is_a_wrong_answer():
    assert http_api.embeddings(_answer([[1, 0], [0, 1]])).tolist() == [[1, 0], [0, 1]]
    for wrong in (b"<html>", b"{}", b'{"data": []}', b'{"data": [{"embedding": [1.0]}]}', _answer([[1, 0], [1]])):
        with pytest.raises(WrongAnswerError):
            http_api.embeddings(wrong)


def test_equal_answers_agree_and_those_of_other_items_do_not():
    random = np.random.default_rng(0)
    # As random weights embed: everything alike.
    ours = _unit(10 + random.standard_normal((12, 64)))
    near = _unit(ours + 1e-5 * random.standard_normal(ours.shape))
    assert answers.compare({"text": ours}, {"text": near})["text"]["cosine"] > 0.9999
    other = ours[::-1]
    assert answers.agreement(ours, other)["cosine"] > 0.98
    with pytest.raises(SideError, match="its text embeddings are not tritonclip's"):
        answers.compare({"text": ours}, {"text": other})
    with pytest.raises(SideError, match=r"\[12, 32\]"):
        answers.agreement(ours, ours[:, :32])


def test_a_loop_is_measured_after_its_warm_up():
    done = []

    def steps():
        while True:
            done.append(1)
            threading.Event().wait(0.01)
            yield 8

    found = measure_loop(steps(), "embed_image", warmup_s=0.05, seconds=0.2)
    total = found["by_model"]["embed_image"]
    assert total["items"] == 8 * total["requests"]
    assert 0 < total["requests"] < len(done)
    assert 0.2 <= found["window_s"] < 1


def test_a_server_that_ends_at_once_is_told_with_what_it_said(tmp_path):
    def command(port):
        return [sys.executable, "-c", f"raise SystemExit('cannot serve on {port}')"]

    side = HttpServer("x", "fastapi", command, {}, {}, tmp_path / "log", SimpleNamespace(checkpoint=tmp_path), DIM)
    with pytest.raises(SideError, match="ended with status 1:\ncannot serve on"), side:
        pass


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sides", "fastapi,tei"], "'tei' is no side; allowed: fastapi, fastapi-batching, infinity"),
        (["--patterns", "2x2"], "'2x2' is no pattern; allowed: 1x1, 8x1, 16x1, 4x8"),
        (["--rounds", "0"], "give a whole number from 1"),
    ],
)
def test_an_option_that_cannot_be_is_one_clear_line(words, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run.main(words)
    assert message in capsys.readouterr().err


def test_a_result_that_cannot_be_written_or_read_is_told_before_anything_starts(tmp_path, capsys):
    assert run.main(["--json", str(tmp_path / "none" / "x.json")]) == 2
    (tmp_path / "load.json").write_text('{"kind": "load"}')
    assert run.main(["--markdown", str(tmp_path / "load.json")]) == 2
    errors = capsys.readouterr().err
    assert "cannot be written" in errors
    assert "is no result of this benchmark" in errors


class _Side:
    """Answers `good` loads and then raises `failure`."""

    what, command, versions = "a side", "", {}

    def __init__(self, good=10**6, failure=None):
        self.good, self.failure, self.closed = good, failure, 0

    def measure(self, load):
        self.good -= 1
        if self.good < 0:
            raise self.failure
        return {**_results(20.0), "broken": None}

    def __exit__(self, *_):
        self.closed += 1


def _measured(**sides):
    plan = _plan(rounds=2, patterns=(ONE,), sides=("fastapi", "infinity"), work=Path("/somewhere/work"))
    comparison = run.Comparison(plan, SimpleNamespace(), sides={OURS: _Side(), "fastapi": _Side(), **sides})
    saved = []
    comparison.save = lambda: saved.append(len(comparison.runs))
    # Tests share the machine, and would wait for it to become quiet.
    with mock.patch.object(run, "settle", return_value=True):
        comparison.measure()
    return comparison, saved


def test_a_window_with_hardly_any_answers_is_warned_of():
    comparison, _ = _measured(infinity=_Side())
    for key, results in comparison.runs.items():
        results["total"]["requests"] = 0 if key[:2] == ("infinity", "text") else 5
    (warning,) = comparison._warnings()
    assert warning == "windows with fewer answers than clients: infinity text 1x1; give more --seconds"


def test_a_baseline_that_dies_is_left_out_and_stopped_and_the_others_go_on():
    dying = _Side(1, SideError("died; see /somewhere/work/infinity.log"))
    comparison, saved = _measured(infinity=dying)
    assert comparison.broken is None
    # Two rounds of two scenarios of two sides, and what it did before.
    assert saved[-1] == len(comparison.runs) == 2 * 2 * 2 + 1
    assert comparison.told["infinity"]["reason"] == "died; see WORK/infinity.log"
    assert dying.closed == 1


@pytest.mark.parametrize(
    ("failure", "broken"),
    [(KeyboardInterrupt(), "interrupted (Ctrl-C)"), (SideError("tritonserver died"), "tritonserver died")],
)
def test_what_ends_a_run_leaves_what_was_measured(failure, broken):
    comparison, saved = _measured(**{OURS: _Side(3, failure), "infinity": _Side()})
    assert comparison.broken == broken
    assert saved[-1] == len(comparison.runs) > 2 * 3


class _Embedder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vector = (1.0, 0.0, 0.0, 0.0)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body["texts"])
        answer = _answer([self.vector] * len(body["texts"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("length", [1.0, 2.0])
def test_the_load_generator_counts_good_answers_and_refuses_wrong_ones(length):
    handler = type("Handler", (_Embedder,), {"vector": (length, 0.0, 0.0, 0.0)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        plan = Load("text", Pattern(2, 3), 1, 0, 5).plan(f"http://127.0.0.1:{server.server_port}", None)
        more = ("--api", "fastapi", "--dim", str(DIM), "--server-pid", str(os.getpid()))
        found = run_load(plan, progress=False, locustfile=HTTP_LOCUSTFILE, more=more)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    total = found["by_model"]["embed_text"]
    if length == 1.0:
        assert total["items"] == 3 * total["requests"] > 0
        assert total["failures"] == 0
        assert found["client"]["check_ms"] > 0
    else:
        assert total["requests"] == 0
        assert total["failure_reasons"] == {"embedding holds vectors that are not of length 1": total["failures"]}
    # This process serves.
    assert 0 < found["server_cpu_cores"] < 2
    texts = [text for asked in server.asked for text in asked]
    assert len(set(texts)) == len(texts)
