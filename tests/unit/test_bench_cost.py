"""`tritonclip bench cost`: the Pareto front over records, pricing anew, and the rooflines of the priced GPUs."""

import json
import subprocess
import sys

import pytest

from tritonclip_bench.cost.pareto import dominators, notes, run_of, verdicts
from tritonclip_bench.cost.price_table import price_table
from tritonclip_bench.cost.prices import Price, dollars_per_million
from tritonclip_bench.gpu.limits import limits, reached, work
from tritonclip_client.main import main
from tritonclip_export.registry.catalog import find_model

WORKS = ("clip, 10", "clip, 99", "image")
HOUR = Price(3.6, "2999-01-01", "a bill")


def load(label="a", items_per_s=1000.0, p99=20.0, price=HOUR, scenario="image", architecture="ViT-L-14", **more):
    total = {"items_per_s": items_per_s, "latency_ms": None if p99 is None else {"p99": p99}}
    results = {"total": total, **more.pop("results", {})}
    item = {"image": "images", "text": "texts"}.get(scenario, scenario)
    return {
        "schema": 2,
        "kind": "load",
        "label": label,
        "plan": {"scenario": scenario, "batch_size": 1, "labels": 10},
        "server": {
            "same_machine_as_client": True,
            "spec": {"name": "x", "architecture": architecture, "precision": "float16"},
        },
        "results": results,
        "repeats": [results],
        "spread": None,
        "broken": None,
        "warnings": [],
        "cost": price and {"dollars_per_million": 1e6 / items_per_s / 1000, "item": item, "price": price.to_dict()},
        **more,
    }


def front(*loads, price=None):
    runs = [run_of(one, price) for one in loads]
    return dict(zip([run.label for run in runs], verdicts(runs), strict=True))


def test_the_front_of_cost_and_latency():
    found = front(
        load("cheap", 2000.0, 50.0),
        load("fast", 1000.0, 10.0),
        load("neither", 900.0, 60.0),
        load("like fast, slower", 1000.0, 11.0),
    )
    assert found["cheap"] == found["fast"] == "on the front"
    assert found["neither"] == "dominated by cheap, fast, like fast, slower"
    assert found["like fast, slower"] == "dominated by fast"


def test_equal_runs_are_both_on_the_front():
    assert set(front(load("a"), load("b")).values()) == {"on the front"}


def test_many_better_runs_are_counted():
    runs = [run_of(load(str(index), 1000.0 + index), None) for index in range(6)]
    assert verdicts(runs)[0] == "dominated by 1, 2, 3 and 2 more"
    assert dominators(runs)[0] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"broken": "the server died"}, "broken: the server died"),
        ({"results": {"broken": "interrupted"}}, "broken: interrupted"),
        ({"trial": {"verdict": "failed", "reason": "p99 is 80.0 ms"}}, "the objective was missed: p99 is 80.0 ms"),
        ({"p99": None}, "nothing was answered"),
        ({"items_per_s": 0.0, "price": None}, "nothing was answered"),
        ({"price": None}, "no price"),
    ],
)
def test_what_is_compared_with_none_says_why_and_beats_none(change, why):
    better = load("better", **{"items_per_s": 9000.0, "p99": 1.0, **change})
    found = front(better, load("good"))
    assert found == {"better": why, "good": "on the front"}


def test_other_items_and_currencies_are_not_compared():
    franc = Price(0.001, "2999-01-01", "a bill", currency="CHF")
    loads = [load("images"), load("texts", 9000.0, 1.0, scenario="text"), load("francs", 9000.0, 1.0, franc)]
    assert set(front(*loads).values()) == {"on the front"}
    told = notes([run_of(one, None) for one in loads])
    assert "images and texts are not compared with each other" in told
    assert "CHF and USD are not compared with each other" in told


def test_runs_of_different_models_are_said_to_be():
    told = notes([run_of(load("a"), None), run_of(load("b", architecture="ViT-B-32"), None)])
    assert told == ["the runs are of different work: image x ViT-B-32 float16; image x ViT-L-14 float16"]


def test_images_with_labels_are_other_work_than_images():
    told = notes([run_of(one, None) for one in (load("a"), _clip("b", 10), _clip("c", 99))])
    assert told == ["the runs are of different work: " + "; ".join(f"{what} x ViT-L-14 float16" for what in WORKS)]


def _clip(label, labels):
    found = load(label)
    found["plan"] |= {"scenario": "clip", "labels": labels}
    return found


@pytest.mark.parametrize("spread", [{"mean": 5.0}, {"n": 3, "mean": 5.0, "half_width": "?"}, {"mean": None}])
def test_a_spread_that_is_none_gives_no_interval(spread):
    assert run_of(load(spread={"items_per_s": spread}), None).cost["spread"] is None


def test_failed_requests_are_told():
    bad = load("bad", 5000.0, 1.0)
    bad["results"]["total"] |= {"requests": 60, "failures": 40}
    assert notes([run_of(one, None) for one in (bad, load("good"))]) == [
        "bad: 40 of 100 requests failed, and are not counted"
    ]


def test_spot_is_told_from_on_demand():
    spot = Price(1.0, "2999-01-01", "a bill", instance="box", kind="spot")
    told = notes([run_of(load("a", price=spot), None), run_of(load("b"), None)])
    assert told == ["some runs are priced as spot, which may be taken away at any time, and others are not"]


def test_an_old_price_warns_once():
    old = Price(1.0, "2001-01-01", "a bill", instance="box")
    told = notes([run_of(load(name, price=old), None) for name in "ab"])
    assert len(told) == 1
    assert "the price of box is" in told[0]


def test_another_price_and_the_spread():
    spread = {"items_per_s": {"n": 3, "mean": 1000.0, "half_width": 100.0, "relative": 0.1, "low": 9e2, "high": 11e2}}
    one = run_of(load(price=None, spread=spread), Price(7.2, "2999-01-01", "a bill", currency="EUR"))
    assert one.cost["dollars_per_million"] == pytest.approx(2.0)
    assert one.cost["currency"] == "EUR"
    assert one.cost["spread"]["dollars_per_million"] == pytest.approx([2 / 1.1, 2 / 0.9])


# Items a second at the data sheet's peak, from the project's reference, which rounds the operations to 10 MFLOPs.
@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("ViT-B-32", {"T4": 7370, "L4": 13719, "L40S": 41043, "A100-SXM4-40GB": 35374, "H100 80GB HBM3": 112132}),
        ("ViT-B-16-SigLIP", {"T4": 1835, "L4": 3416, "L40S": 10220, "A100-SXM4-40GB": 8809, "H100 80GB HBM3": 27922}),
        ("ViT-L-14", {"T4": 401, "L4": 747, "L40S": 2234, "A100-SXM4-40GB": 1926, "H100 80GB HBM3": 6104}),
        ("ViT-L-14-336", {"T4": 170, "L4": 317, "L40S": 948, "A100-SXM4-40GB": 817, "H100 80GB HBM3": 2590}),
        ("ViT-H-14-378", {"T4": 65, "L4": 120, "L40S": 359, "A100-SXM4-40GB": 310, "H100 80GB HBM3": 982}),
        ("ViT-SO400M-14-SigLIP-384", {"T4": 97, "L4": 181, "L40S": 540, "A100-SXM4-40GB": 465, "H100 80GB HBM3": 1475}),
    ],
)
def test_the_roofline_is_that_of_the_reference(model, expected):
    found = limits(work(find_model(model), "image"), price_table().values())
    for gpu, rate in expected.items():
        each = [limit.items_per_s / limit.price.gpus for limit in found if limit.price.gpu == gpu]
        assert each
        assert each == pytest.approx([rate] * len(each), abs=0.51, rel=3e-4)


def test_where_sources_disagree_every_claim_is_a_row():
    found = [one for one in limits(work(find_model("ViT-L-14"), "image"), price_table().values())
             if one.price.name == "g5.xlarge"]  # fmt: skip
    assert {one.tflops: round(one.items_per_s) for one in found} == {70: 432, 125: 771}
    assert {one.note for one in found} == {"sources disagree on its peak"}


def test_what_is_unknown_is_called_unknown_and_stands_last():
    found = limits(work(find_model("ViT-L-14"), "image"), price_table().values())
    unknown = [one for one in found if one.price.gpu == "H100 NVL"]
    assert unknown == found[-len(unknown) :]
    assert all(one.items_per_s is one.dollars_per_million is one.tflops is None for one in unknown)
    assert "unknown" in unknown[0].note


def test_limits_in_different_currencies_are_not_sorted_among_each_other():
    prices = [Price(rate, "2999-01-01", "a bill", gpu="T4", gpus=1, currency=unit)
              for rate, unit in ((3.0, "USD"), (2.0, "EUR"), (1.0, "USD"), (4.0, "EUR"))]  # fmt: skip
    found = [limit.price for limit in limits(work(find_model("ViT-B-32"), "image"), prices)]
    assert [(price.currency, price.price_per_hour) for price in found] == [
        ("EUR", 2.0), ("EUR", 4.0), ("USD", 1.0), ("USD", 3.0)]  # fmt: skip


def test_short_texts_may_pass_the_limit_and_it_is_said():
    model = find_model("ViT-B-32")
    results = {"gpus": [{"name": "Tesla T4"}]}
    for scenario, said in (("text", True), ("image", False)):
        found = reached(load(scenario=scenario, results=results), work(model, scenario), None)
        assert ("may pass the limit" in found.note) == said


def test_a_limit_by_hand():
    """1000 operations, 400 bytes of weights and 100 bytes an item."""
    from tritonclip_bench.gpu.limits import Work
    from tritonclip_bench.gpu.roofline import Item

    price = Price(3.6, "2999-01-01", "a bill", gpu="T4", gpus=2)
    # 65e12 operations and 320e9 bytes a second: moving 3.2e9 items a second is the limit, computing would take 65e9.
    (found,) = limits(Work("w", Item(1000, 400, 100)), [price])
    assert found.items_per_s == pytest.approx(2 * 3.2e9)
    assert found.full_batch is None
    assert found.alone_per_s == pytest.approx(2 * 320e9 / 500)
    # At 1e6 operations the products are: 65e6 items; the weights of 400e3 bytes take as long as 1 / (65e6) s x 81.25.
    (found,) = limits(Work("w", Item(1e6, 400e3, 100)), [price])
    assert found.items_per_s == pytest.approx(2 * 65e6)
    assert found.full_batch == 83
    assert found.dollars_per_million == pytest.approx(dollars_per_million(2 * 65e6, 3.6))


def test_images_against_texts_cost_both_towers():
    model = find_model("ViT-B-32")
    both = work(model, "clip", batch_size=5, labels=10).item
    assert both.flops == model.image_flops + 2 * model.text_flops
    assert work(model, "classify") == work(model, "image")
    assert work(model, "mixed") is None


@pytest.mark.parametrize(
    ("results", "server", "price", "share", "note"),
    [
        ({"gpus": [{"name": "Tesla T4"}]}, {}, HOUR, 0.25, "its GPU: 1 x Tesla T4"),
        ({"gpus": [{"name": "Tesla T4"}] * 2}, {}, HOUR, 0.125, "2 x Tesla T4"),
        ({"gpus": [{"name": "NVIDIA A10G"}]}, {}, HOUR, 0.13, "the higher one is taken"),
        ({"gpus": [{"name": "NVIDIA GB200"}]}, {}, HOUR, None, "no data sheet of NVIDIA GB200"),
        ({"gpus": []}, {}, HOUR, None, "it ran without a GPU"),
        ({"gpus": []}, {}, price_table()["g4dn.xlarge"], None, "it ran without a GPU"),
        ({}, {}, HOUR, None, "the record does not name its GPU"),
        ({}, {"same_machine_as_client": False}, HOUR, None, "the record does not name its GPU"),
        (
            {},
            {"same_machine_as_client": False},
            price_table()["g4dn.xlarge"],
            0.25,
            "the instance that it is priced as",
        ),
    ],
)
def test_the_share_of_the_limit(results, server, price, share, note):
    one = load(items_per_s=100.3, results=results, server={**load()["server"], **server})
    found = reached(one, work(find_model("ViT-L-14"), "image"), price)
    assert found.share == (None if share is None else pytest.approx(share, abs=0.001))
    assert note in found.note


def write(path, *loads):
    for one in loads:
        (path / f"{one['label']}.json").write_text(json.dumps(one))
    return [str(path / f"{one['label']}.json") for one in loads]


def test_the_command_compares_prices_and_writes(tmp_path, capsys):
    files = write(
        tmp_path, load("cheap", 2000.0, 50.0, results={"gpus": [{"name": "NVIDIA L4"}]}), load("slow", 900, 60)
    )
    out = tmp_path / "cost.json"
    assert main(["bench", "cost", *files, "--roofline", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    assert "$0.50 images" in text
    assert "dominated by cheap" in text
    assert "at most, one image of ViT-L-14, 162.03 GFLOPs" in text
    record = json.loads(out.read_text())
    assert [run["on_front"] for run in record["runs"]] == [True, False]
    assert record["runs"][1]["dominated_by"] == ["cheap"]
    assert len(record["limits"]["one image of ViT-L-14"]) > 20
    assert record["reached"][0]["share"] == pytest.approx(2000 / 747, rel=0.01)
    assert main(["bench", "cost", *files, "--price-per-hour", "7.2", "--currency", "EUR"]) == 0
    assert "€1.00 images" in capsys.readouterr().out


def test_a_run_whose_work_is_unknown_says_why(tmp_path, capsys):
    files = write(tmp_path, load("demo", architecture="checkpoint"), load("mixed", scenario="mixed"))
    assert main(["bench", "cost", *files, "--roofline"]) == 0
    text = capsys.readouterr().out
    assert "at most" not in text
    assert "the registry knows no architecture 'checkpoint'" in text
    assert "items of the scenario 'mixed' are of several kinds" in text
    assert main(["bench", "cost", *files, "--roofline", "--model", "ViT-B-32"]) == 0
    assert "one image of ViT-B-32, 8.82 GFLOPs" in capsys.readouterr().out


def test_nothing_to_compare_is_an_exit_status(tmp_path, capsys):
    assert main(["bench", "cost", *write(tmp_path, load("a", price=None))]) == 1
    assert "no price" in capsys.readouterr().out


def test_the_list_and_a_model_without_a_record(capsys):
    assert main(["bench", "cost", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in price_table())
    assert "hf-endpoint-t4: the source gives no date" in text
    assert main(["bench", "cost", "--roofline", "--model", "vit_l_14"]) == 0
    assert "one text of ViT-L-14, 77 tokens, 13.30 GFLOPs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a RECORD, or --list, or --roofline with --model NAME"),
        (["--roofline"], "give a RECORD"),
        (["--roofline", "--model", "ViT-L-15"], "no model is called 'ViT-L-15'; closest: ViT-L-1"),
        (["--list", "--instance", "g6.xlage"], "closest: g6.xlarge"),
        (["--list", "--price-per-hour", "0"], "a number above 0"),
        (["/no/such/record.json"], "cannot be read"),
        (["--list", "--json", "/no/such/folder/cost.json"], "cannot be written"),
        (["odd.json"], "a record's price cannot be read"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {**load("odd"), "cost": {"dollars_per_million": 1.0, "item": "images", "price": {"a": 1}}})
    assert main(["bench", "cost", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_neither_torch_nor_locust_is_needed():
    code = (
        "import sys; from tritonclip_client.main import main; "
        "status = main(['bench', 'cost', '--roofline', '--model', 'ViT-B-32']); "
        "sys.exit(status or ', '.join({'torch', 'locust', 'onnx', 'onnxruntime'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
