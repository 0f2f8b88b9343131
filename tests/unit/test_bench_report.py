"""The report of a load test, the files it is written to, and the errors before there is one."""

import argparse
import json
import platform
from dataclasses import replace

import pytest

from tritonclip_bench.cost.price_table import price_table
from tritonclip_bench.errors import BenchError
from tritonclip_bench.files import check_writable, write_json
from tritonclip_bench.load.loadrun import LoadPlan
from tritonclip_bench.load.recorder import Recorder
from tritonclip_bench.results.report import make_report, render
from tritonclip_bench.server.endpoint import ServerInfo
from tritonclip_bench.traffic.workload import check_limits
from tritonclip_client.main import main
from tritonclip_client.spec import ImageSpec, Scoring, ServingSpec, TextSpec

SPEC = ServingSpec(
    name="demo",
    architecture="ViT-B-32",
    embedding_dim=512,
    image=ImageSpec(224, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", "shortest", (0, 0, 0)),
    text=TextSpec(77, 49408, (16, 32, 77), 0, 49406, 49407, "lower", "argmax"),
    scoring=Scoring("softmax", 100.0, 0.0),
    precision="float32",
    runtime="onnxruntime-python",
    fingerprint="0123456789abcdef" * 4,
)
SERVER = ServerInfo("2.51.0", SPEC, {"embed_image": 32, "embed_text": 64, "clip": 0})
PLAN = LoadPlan(
    address="gpu-box.example:8001",
    scenario="image",
    users=4,
    duration_s=3,
    warmup_s=1,
    deadline_s=30,
    batch_size=8,
    labels=10,
    seed=1,
    repeat_texts=False,
)


def measured(*, failures=0, cpu=0.1):
    recorder = Recorder()
    recorder.begin()
    for latency_ms in (10.0, 20.0, 40.0):
        recorder.add("embed_image", latency_ms, 8, None)
    for _ in range(failures):
        recorder.add("embed_image", 1.0, 8, BenchError("UNAVAILABLE: busy"))
    recorder.end()
    images = {"source": "drawn", "count": 2, "mean_bytes": 1000}
    return {**recorder.results(), "client_cpu_cores": cpu, "images": images}


def test_the_report_holds_what_repeating_it_needs():
    report = json.loads(json.dumps(make_report(PLAN, SERVER, measured(), price_table()["g6.xlarge"])))
    assert set(report) == {
        *(
            "schema",
            "kind",
            "label",
            "measured_at",
            "plan",
            "results",
            "repeats",
            "spread",
            "cost",
            "warnings",
            "broken",
        ),
        *("server", "client_machine", "client_versions"),
    }
    assert report["plan"]["users"] == 4
    assert report["plan"]["images"] == {"source": "drawn", "count": 2, "mean_bytes": 1000}
    assert report["server"]["fingerprint"] == SPEC.fingerprint
    assert report["server"]["same_machine_as_client"] is False
    assert set(report["client_machine"]) == {"cpu", "cores", "cores_usable", "memory_gib", "system"}
    assert {"python", "grpcio", "locust", "numpy"} <= set(report["client_versions"])
    assert report["cost"]["price"]["date"] == "2026-04-29"


def test_the_report_names_no_machine():
    text = json.dumps(make_report(PLAN, SERVER, measured(), None))
    assert "gpu-box" not in text
    assert f'"{platform.node()}"' not in text


def test_the_table_shows_rates_percentiles_and_cost():
    results = measured()
    report = make_report(PLAN, SERVER, results, price_table()["g6.xlarge"])
    text = render(report)
    header, _, row = text.splitlines()[3:6]
    assert " ".join(header.split()) == "items/s requests/s p50 ms p95 ms p99 ms max ms failures"
    assert row.split()[3:] == ["20.0", "40.0", "40.0", "40.0", "0"]
    assert f"{results['total']['items_per_s']:.1f}" in row
    assert "images per dollar, $" in text
    assert " per million at $0.8048 an hour for g6.xlarge (4 vCPU, L4) [AWS us-east-1, on demand, 2026-04-29, " in text


def test_a_mix_of_its_own_is_priced_by_what_it_counts():
    plan = replace(PLAN, scenario="mixed", mix="embed_image=3,clip=1")
    assert make_report(plan, SERVER, measured(), price_table()["g6.xlarge"])["cost"]["item"] == "images"


def test_the_spread_of_the_runs_reaches_the_cost():
    runs = [measured(), measured()]
    for run, rate in zip(runs, (90.0, 110.0), strict=True):
        run["total"]["items_per_s"] = rate
    report = make_report(PLAN, SERVER, runs[0], price_table()["g6.xlarge"], repeats=runs)
    assert report["cost"]["spread"]["n"] == 2
    # Of two runs the mean is hardly known: 100 ± 12.7 x 10.
    assert report["cost"]["spread"]["dollars_per_million"][1] is None
    assert "no upper bound, 95 % confidence of 2 runs" in render(report)


def test_without_a_price_the_report_says_how_to_give_one():
    text = render(make_report(PLAN, SERVER, measured(), None))
    assert "cost: not computed" in text
    assert "--price-per-hour" in text
    assert "--instance" in text


def test_a_stale_price_is_called_stale():
    assert "STALE" in render(make_report(PLAN, SERVER, measured(), price_table()["hf-endpoint-t4"]))


def test_a_busy_load_generator_is_reported_as_a_possible_bottleneck():
    assert "may be the bottleneck" in render(make_report(PLAN, SERVER, measured(cpu=0.81), None))
    assert make_report(PLAN, SERVER, measured(cpu=0.79), None)["warnings"] == []


def test_failures_are_shown_with_their_reason():
    text = render(make_report(PLAN, SERVER, measured(failures=2), None))
    assert "failed 2 x: UNAVAILABLE: busy" in text
    assert "warning: some requests failed" in text


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_what_takes_no_file_is_named_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "missing" / "result.json"):
        with pytest.raises(BenchError, match=r"cannot be written \(.*\); give a file in a folder that exists"):
            write_json(path, {})
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_path_that_cannot_be_written_is_refused_beforehand(tmp_path):
    check_writable(tmp_path / "new.json")
    for path in (tmp_path, tmp_path / "missing" / "result.json"):
        with pytest.raises(BenchError, match="folder that exists"):
            check_writable(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "0"], "'0' users; give a whole number from 1"),
        (["--duration", "soon"], "'soon' is not a duration"),
        (["--duration", "0s"], "give at least 1s"),
        (["--scenario", "video"], "choose from"),
        (["--batch-size", "-1"], "whole number from 1"),
        (["--price-per-hour", "cheap"], "invalid float value"),
    ],
)
def test_bad_options_are_usage_errors(capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(["bench", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "/no/such/folder"], "is not a folder"),
        (["--texts", "/no/such/file"], "cannot be read"),
        (["--instance", "g6.xlage"], "closest: g6.xlarge"),
        (["--instance", "g6.xlarge", "--currency", "EUR"], "is in USD, not EUR"),
        (["--price-per-hour", "0"], "a number above 0"),
        (["--prices", "/no/such/prices.toml"], "cannot be read"),
        (["--price-per-hour", "-1"], "a number above 0"),
        (["--json", "/no/such/folder/result.json"], "cannot be written"),
    ],
)
def test_bad_input_is_one_clear_line_before_any_server_is_asked(capsys, arguments, message):
    assert main(["bench", "--address", "127.0.0.1:9", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users", "0"], "'0' users; give a whole number from 1"),
        (["--duration", "soon"], "'soon' is not a duration"),
        (["--price-per-hour", "cheap"], "invalid float value"),
    ],
)
def test_the_demo_refuses_bad_options_before_its_first_step(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", str(tmp_path / "demo"), *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "arguments", "status", "message"),
    [
        ("new", ["--instance", "g6.xlage"], 2, "closest: g6.xlarge"),
        ("new", ["--price-per-hour", "0"], 2, "a number above 0"),
        ("file", [], 1, "file cannot be made a folder (File exists); give another one"),
    ],
)
def test_the_demo_refuses_bad_input_before_its_first_step(tmp_path, capsys, folder, arguments, status, message):
    (tmp_path / "file").touch()
    assert main(["demo", str(tmp_path / folder), *arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("scenario", ["clip", "mixed"])
def test_more_labels_than_the_server_takes_are_refused_where_labels_are_sent(scenario):
    options = argparse.Namespace(scenario=scenario, batch_size=8, labels=64)
    check_limits(options, SERVER)
    options.labels = 65
    with pytest.raises(BenchError, match="--labels 65; embed_text on this server takes 1 to 64 in a request"):
        check_limits(options, SERVER)
    options.scenario = "image"
    check_limits(options, SERVER)
