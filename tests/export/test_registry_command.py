"""`tritonclip models`, as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tritonclip_client.main import main
from tritonclip_export.registry import results
from tritonclip_export.registry.catalog import all_models, all_rows
from tritonclip_export.registry.results import Record

SERVED = Record("EVA02-B-16", "EVA-02", "open_clip tag", "open_clip", 0.9999999, 0.9999998, 2e-7, True, "shrunk")


@pytest.fixture
def eva_served(monkeypatch):
    monkeypatch.setattr(results, "all_exercised", lambda: (SERVED,))


def run(capsys, *words):
    status = main(["models", *words])
    return status, capsys.readouterr()


def test_all_are_listed_family_by_family(capsys):
    status, said = run(capsys)
    lines = said.out.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[2:-2] if " + " in line] == [row.model.config for row in all_rows()]
    assert "SigLIP 2: SigLIP with Gemma's vocabulary, lower-cased" in lines
    assert max(map(len, lines)) <= 132


def test_one_family(capsys, eva_served):
    _, said = run(capsys, "--family", "eva02")
    assert said.out.splitlines()[3:9] == [
        "EVA-02: EVA-02 image towers: rotary positions, SwiGLU",
        "EVA02-B-16         224       77   512  softmax  86.3 + 63.4     35.1 + 6.0           1  served (shrunk)",
        "EVA02-E-14         224       77  1024  softmax  4350.6 + 354.0  2264.3 + 47.1        1  -",
        "EVA02-E-14-plus    224       77  1024  softmax  4350.6 + 694.3  2264.3 + 97.9        1  -",
        "EVA02-L-14         224       77   768  softmax  304.1 + 123.7   162.0 + 13.3         1  -",
        "EVA02-L-14-336     336       77   768  softmax  304.4 + 123.7   381.9 + 13.3         1  -",
    ]


def test_one_config_with_its_weights(capsys, eva_served):
    _, said = run(capsys, "eva02-b-16")
    assert "merged2b_s8b_b131k  EVA-02  0.4815 0.4578 0.4082  0.2686 0.2613 0.2758  bicubic, shortest" in said.out
    assert "EVA-02     open_clip tag  open_clip     0.9999999    0.9999998    2e-07  served (shrunk)" in said.out


def test_a_config_warns_of_weights_with_the_other_activation(capsys):
    _, said = run(capsys, "ViT-L-14-336")
    assert "trained with QuickGELU: take ViT-L-14-336-quickgelu" in said.out


def test_a_config_without_weights(capsys):
    _, said = run(capsys, "ViT-e-14")
    assert "no released weights: architecture only" in said.out


def test_json_holds_everything(capsys, eva_served):
    _, said = run(capsys, "--json")
    listed = json.loads(said.out)
    assert [entry["config"] for entry in listed] == list(dict.fromkeys(row.model.config for row in all_rows()))
    assert len(listed) == len(all_models())
    one = next(entry for entry in listed if entry["config"] == "EVA02-B-16")
    assert (one["families"], one["image_parameters"], one["context_length"]) == (["EVA-02"], 86263040, 77)
    assert one["weights"][0]["family"] == "EVA-02"
    assert one["exercised"][0]["source"] == "open_clip tag"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ViT-B-33"], "error: no model is called 'ViT-B-33'; closest: ViT-B-32, "),
        (["--family", "siglpi"], "error: no family is called 'siglpi'; closest: SigLIP, "),
    ],
)
def test_unknown_names_get_close_matches(capsys, words, message):
    status, said = run(capsys, *words)
    assert (status, said.out) == (2, "")
    assert said.err.startswith(message)


def test_a_config_and_a_family_together_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["models", "ViT-B-32", "--family", "siglip"])
    assert "not allowed with" in capsys.readouterr().err


def test_it_answers_without_torch():
    script = (
        "import sys; from tritonclip_client.main import main; main(['models', '--json'])\n"
        "sys.exit(str([name for name in ('torch', 'open_clip', 'numpy', 'transformers') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == "[]"
