"""Float16 and int8: what is written, what is refused, and which layer is blamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from tiny_clip import tiny_state_dict, write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.errors import ParityError, SpecError
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.comparison import MINIMUM_COSINE
from tritonclip_export.pipeline import ExportRequest, export
from tritonclip_export.repository.manifest import verify
from tritonclip_export.spec import ServingSpec
from tritonclip_export.towers import onnx_export
from tritonclip_export.towers.precision import float16

TOWERS = ("image", "text")
PLANTED = "visual.transformer.resblocks.1.mlp.c_fc"


def _graphs(out: Path) -> dict[str, Any]:
    return {tower: onnx.load(out / f"{tower}_encoder" / "1" / "model.onnx").graph for tower in TOWERS}


def _export(source: Path, out: Path, precision: str) -> dict[str, Any]:
    return export(ExportRequest(str(source), out, precision=precision))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture(scope="module")
def narrow(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in float16, through the command line."""
    out = tmp_path_factory.mktemp("narrow") / "out"
    assert main(["export", str(source), str(out), "--precision", "fp16"]) == 0
    return out


def overflowing(factor: float) -> dict[str, torch.Tensor]:
    """Weights of which one layer's output is `factor` times as large, and the next layer's as small again."""
    weights = tiny_state_dict()
    weights[f"{PLANTED}.weight"] *= factor
    weights[f"{PLANTED}.bias"] *= factor
    weights[f"{PLANTED.replace('c_fc', 'c_proj')}.weight"] /= factor
    return weights


def test_weights_are_float16_and_norms_float32(narrow: Path) -> None:
    for graph in _graphs(narrow).values():
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        norms = {name for node in graph.node if node.op_type == "LayerNormalization" for name in node.input[1:]}
        assert norms
        assert {tensors[name].data_type for name in norms} == {TensorProto.FLOAT}
        matrices = [tensor for tensor in tensors.values() if np.prod(tensor.dims) > 1000]
        assert {tensor.data_type for tensor in matrices} == {TensorProto.FLOAT16}
        floats = [t for t in tensors.values() if t.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)]
        assert all(np.isfinite(numpy_helper.to_array(tensor)).all() for tensor in floats)


def test_inputs_stay_integers_and_embeddings_float32(narrow: Path) -> None:
    types = {
        value.name: value.type.tensor_type.elem_type
        for graph in _graphs(narrow).values()
        for value in (*graph.input, *graph.output)
    }
    assert types == {
        "pixels": TensorProto.UINT8,
        "input_ids": TensorProto.INT32,
        "image_embedding": TensorProto.FLOAT,
        "text_embedding": TensorProto.FLOAT,
    }


def test_between_the_products_of_an_attention_stands_the_mask_alone(narrow: Path) -> None:
    for tower, graph in _graphs(narrow).items():
        maker = {name: node for node in graph.node for name in node.output}
        for softmax in (node for node in graph.node if node.op_type == "Softmax"):
            before = maker[softmax.input[0]]
            if tower == "text":
                assert before.op_type == "Add"
                before = next(
                    maker[name] for name in before.input if maker.get(name) and maker[name].op_type == "MatMul"
                )
            assert before.op_type == "MatMul"
            assert [node.op_type for node in graph.node if softmax.output[0] in node.input] == ["MatMul"]


def test_the_manifest_reports_what_was_lost_and_where(narrow: Path) -> None:
    manifest = verify(narrow)
    report = manifest["parity"]
    assert manifest["spec"]["precision"] == report["precision"] == "float16"
    assert [c["stage"] for c in report["comparisons"]][:4] == ["merge", "merge", "float16", "float16"]
    assert all(c["cosine_min"] <= c["cosine_p1"] <= c["cosine_mean"] for c in report["comparisons"])
    assert report["top1_agreement"] == report["top5_agreement"] == 1.0
    for tower in TOWERS:
        layers = report["layers"][tower]
        maxima = [layer["maximum"] for layer in layers["largest"]]
        assert maxima == sorted(maxima, reverse=True)
        assert layers["islands"] == []
        assert all(0 < loss["error_out"] < 0.1 for loss in layers["lossy"])
        assert len(report["worst_inputs"][tower]) == 3
    assert report["worst_inputs"]["image"][0]["input"].startswith("synthetic ")


def test_precision_changes_the_fingerprint(narrow: Path, source: Path, tmp_path: Path) -> None:
    fingerprints = {_export(source, tmp_path / kind, kind)["spec"]["fingerprint"] for kind in ("float32", "int8")}
    assert len({*fingerprints, verify(narrow)["spec"]["fingerprint"]}) == 3


def test_a_layer_beyond_the_range_becomes_an_island(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "tiny", weights=overflowing(3e5))
    report = _export(source, tmp_path / "out", "float16")["parity"]
    islands = report["layers"]["image"]["islands"]
    assert f"model.{PLANTED}" in [layer["name"] for layer in islands]
    assert max(layer["maximum"] for layer in islands) > float16.LIMIT
    assert report["layers"]["text"]["islands"] == []
    assert min(c["cosine_min"] for c in report["comparisons"]) >= MINIMUM_COSINE["float16"]["image"]


def test_a_layer_that_overflows_is_caught_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float16, "LIMIT", float("inf"))
    source = write_tiny_checkpoint(tmp_path / "tiny", weights=overflowing(3e5))
    with pytest.raises(ParityError, match=r"image tower at stage 'float16': cosine nan.*float16") as raised:
        _export(source, tmp_path / "out", "float16")
    assert f"lost most in the layer model.{PLANTED} (Linear" in str(raised.value)
    assert "text tower" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_large_attention_scores_stay_float32(tmp_path: Path) -> None:
    weights = tiny_state_dict()
    weights["transformer.resblocks.0.attn.in_proj_weight"] *= 8
    source = write_tiny_checkpoint(tmp_path / "tiny", weights=weights)
    report = _export(source, tmp_path / "out", "float16")["parity"]
    (island,) = report["layers"]["text"]["islands"]
    assert island["name"] == "transformer.resblocks.0.attn"
    assert island["scores"] > float16.MOST_SCORE
    assert min(c["cosine_min"] for c in report["comparisons"]) >= MINIMUM_COSINE["float16"]["text"]


def test_int8_multiplies_integers(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the weights beside the graph, as those of a large tower are."""
    monkeypatch.setattr(onnx_export, "MAX_SINGLE_FILE_BYTES", 0)
    manifest = _export(source, tmp_path / "out", "int8")
    assert manifest == verify(tmp_path / "out")
    for tower, graph in _graphs(tmp_path / "out").items():
        operators = [node.op_type for node in graph.node]
        assert operators.count("MatMulInteger") == 9, "four a layer, and the projection"
        assert f"{tower}_encoder/1/model.onnx.data" in manifest["files"]
    worst = {c["tower"]: c["cosine_min"] for c in manifest["parity"]["comparisons"]}
    assert all(MINIMUM_COSINE["int8"][tower] < worst[tower] < 0.99999 for tower in TOWERS)


def test_a_graph_that_int8_damages_is_not_published(tmp_path: Path) -> None:
    """One activation, as in many trained towers, is so large that 8 bits leave nothing of the others."""
    weights = tiny_state_dict()
    for layer in (0, 1):
        block = f"visual.transformer.resblocks.{layer}"
        for norm, matrix in (("ln_1", "attn.in_proj_weight"), ("ln_2", "mlp.c_fc.weight")):
            weights[f"{block}.{norm}.weight"][0] *= 1000
            weights[f"{block}.{norm}.bias"][0] *= 1000
            weights[f"{block}.{matrix}"][:, 0] /= 1000
    source = write_tiny_checkpoint(tmp_path / "tiny", weights=weights)
    with pytest.raises(ParityError, match=r"image tower at stage 'onnx': .*in int8: at least 0.995"):
        _export(source, tmp_path / "out", "int8")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_other_precisions_are_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["export", str(source), str(tmp_path / "out"), "--precision", "fp8"])
    assert raised.value.code == 2
    message = capsys.readouterr().err
    assert all(word in message for word in ("fp8", "fp32", "fp16", "int8"))
    assert not (tmp_path / "out").exists()


def test_the_spec_names_the_precisions_that_it_takes(narrow: Path) -> None:
    with pytest.raises(SpecError, match="precision is 'fp8'; allowed: float32, float16, int8"):
        ServingSpec.from_dict({**verify(narrow)["spec"], "precision": "fp8"})


def test_the_manifest_is_plain_json(narrow: Path) -> None:
    text = (narrow / "manifest.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    json.loads(text)
