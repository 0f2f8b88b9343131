"""The registry's families, and its data file against open_clip itself, published sizes and fresh measurements."""

from __future__ import annotations

import json
import re

import pytest

from tritonclip_export.errors import ExportError
from tritonclip_export.frameworks import open_clip
from tritonclip_export.registry import families
from tritonclip_export.registry.catalog import Weights, all_models, all_rows, find_model, open_clip_version
from tritonclip_export.registry.families import all_families, family_of, find_families
from tritonclip_export.registry.measure import measure, measure_extra, released_weights
from tritonclip_export.registry.meta import EXTRA_MODELS

EXTRA = json.loads(EXTRA_MODELS.read_text("utf-8"))

# Millions of parameters and GFLOPs, image and text: docs/model_profile.csv of open_clip, which counts a multiply-add
# as two. Its RoBERTa and NLLB texts have another length, so only their parameters are compared.
PUBLISHED = {
    "ViT-B-32": (87.85, 63.43, 8.82, 5.96),
    "ViT-L-14": (303.97, 123.65, 162.03, 13.3),
    "ViT-bigG-14": (1844.91, 694.66, 967.5, 97.86),
    "ViT-e-14": (3807.72, 773.37, 1981.35, 110.1),
    "RN50x64": (420.38, 202.88, 529.11, 23.55),
    "EVA02-E-14-plus": (4350.56, 694.33, 2264.33, 97.86),
    "convnext_xxlarge": (846.54, 354.03, 395.94, 47.09),
    "ViT-H-14-CLIPA-336": (632.48, 336.16, 781.45, 19.43),
    "ViT-SO400M-14-SigLIP-384": (428.23, 449.73, 670.35, 53.13),
    "coca_ViT-B-32": (89.16, 63.43, 9.19, 5.96),
    "mt5-xl-ViT-H-14": (632.08, 1674.68, 334.59, 179.45),
    "roberta-ViT-B-32": (87.85, 124.87, 8.82, None),
    "xlm-roberta-base-ViT-B-32": (87.85, 278.27, 8.82, None),
    "xlm-roberta-large-ViT-H-14": (632.08, 560.94, 334.59, None),
    "nllb-clip-base": (87.85, 414.04, 8.82, None),
    "nllb-clip-large": (632.08, 767.14, 334.59, None),
}


def test_every_config_of_open_clip_is_listed_once_and_then_the_extra_ones():
    assert open_clip_version() == open_clip.__version__
    assert [model.config for model in all_models()] == open_clip.list_models() + [entry["config"] for entry in EXTRA]


@pytest.mark.parametrize("config", open_clip.list_models())
def test_the_listed_facts_are_open_clips(config):
    model, cfg = find_model(config), open_clip.get_model_config(config)
    tokenizer = cfg["text_cfg"].get("hf_tokenizer_name", "clip")
    assert (model.image_size, model.embed_dim) == (cfg["vision_cfg"]["image_size"], cfg["embed_dim"])
    assert (model.context_length, model.tokenizer) == (cfg["text_cfg"].get("context_length", 77), tokenizer)
    assert (model.scoring == "sigmoid") == ("init_logit_bias" in cfg)
    assert model.quick_gelu == cfg.get("quick_gelu", False)
    assert model.weights == released_weights(model.config)


@pytest.mark.parametrize("config", PUBLISHED)
def test_sizes_are_those_that_open_clip_published(config):
    model = find_model(config)
    image_m, text_m, image_gflops, text_gflops = PUBLISHED[config]
    assert model.image_parameters / 1e6 == pytest.approx(image_m, abs=0.006)
    assert model.text_parameters / 1e6 == pytest.approx(text_m, abs=0.006)
    assert model.image_flops / 1e9 == pytest.approx(image_gflops, abs=0.006)
    assert text_gflops is None or model.text_flops / 1e9 == pytest.approx(text_gflops, abs=0.006)


def test_parameters_of_openais_smallest_vit():
    model = find_model("ViT-B-32-quickgelu")
    # 151277313 in OpenAI's release; one of them is the logit scale.
    assert model.image_parameters + model.text_parameters == 151277313 - 1


@pytest.mark.parametrize(("config", "millions"), [("B-16", 188), ("L-14", 406), ("L-14-336", 407), ("H-14", 958)])
def test_parameters_of_chinese_clip(config, millions):
    model = find_model(f"Chinese-CLIP-ViT-{config}")
    # As the table of Chinese-CLIP's README has them.
    assert (model.image_parameters + model.text_parameters) // 10**6 == pytest.approx(millions, abs=1)


def test_flops_count_a_multiply_add_as_two():
    # Width 768, 12 layers, 50 tokens of 32 x 32 x 3 pixels; the formula of a transformer's matrix products.
    width, layers, tokens, dim = 768, 12, 50, 512
    per_layer = 12 * width * width * tokens + 2 * tokens * tokens * width
    multiply_adds = layers * per_layer + 49 * (32 * 32 * 3) * width + width * dim
    assert find_model("ViT-B-32").image_flops == 2 * multiply_adds


@pytest.mark.parametrize("config", ["ViT-B-32", "ViT-B-16-SigLIP", "MobileCLIP2-S0", "nllb-clip-base", "ViT-bigG-14"])
def test_a_fresh_measurement_gives_what_is_listed(config):
    assert measure(config) == find_model(config)


@pytest.mark.parametrize("entry", [EXTRA[0], EXTRA[2]], ids=lambda entry: entry["config"])
def test_a_fresh_measurement_of_an_extra_model_gives_what_is_listed(entry):
    assert measure_extra(entry) == find_model(entry["config"])


@pytest.mark.parametrize(
    ("config", "weights", "family"),
    [
        ("ViT-B-32-quickgelu", "openai", "OpenAI CLIP"),
        ("ViT-B-32", "laion2b_s34b_b79k", "OpenCLIP"),
        ("ViT-L-14", "commonpool_xl_s13b_b90k", "OpenCLIP"),
        ("ViT-B-32-quickgelu", "metaclip_fullcc", "MetaCLIP 1"),
        ("ViT-H-14-worldwide-378", "metaclip2_worldwide", "MetaCLIP 2"),
        ("ViT-L-14-worldwide", "", "MetaCLIP 2"),
        ("ViT-H-14-378-quickgelu", "dfn5b", "DFN"),
        ("MobileCLIP2-S0", "dfndr2b", "MobileCLIP"),
        ("ViT-H-14-CLIPA-336", "laion2b", "CLIPA"),
        ("ViTamin-L", "datacomp1b", "ViTamin"),
        ("ViT-B-16-SigLIP-i18n-256", "webli", "SigLIP"),
        ("ViT-gopt-16-SigLIP2-384", "webli", "SigLIP 2"),
        ("nllb-clip-base-siglip", "mrl", "NLLB-CLIP"),
        ("EVA01-g-14-plus", "merged2b_s11b_b114k", "EVA-CLIP"),
        ("EVA02-L-14-336", "merged2b_s6b_b61k", "EVA-02"),
        ("coca_roberta-ViT-B-32", "", "CoCa"),
        ("xlm-roberta-large-ViT-H-14", "frozen_laion5b_s13b_b90k", "OpenCLIP with Hugging Face text"),
        ("convnext_xxlarge_320", "", "ConvNeXt"),
        ("ViT-e-14", "", "Without released weights"),
    ],
)
def test_family_of(config, weights, family):
    assert family_of(config, weights).name == family


def test_every_weight_has_one_family_and_every_family_has_members():
    assert {row.family for row in all_rows()} == set(all_families())
    listed = sorted((row.model.config, one.name) for row in all_rows() for one in row.weights)
    assert listed == sorted((model.config, one.name) for model in all_models() for one in model.weights)


def test_weights_without_a_family_are_named():
    with pytest.raises(ExportError, match=r"'ViT-B-32' with weights 'unheard_of' matches 0 families"):
        family_of("ViT-B-32", "unheard_of")


def test_weights_of_two_families_are_refused(monkeypatch):
    twice = (*all_families(), families.Family("Second", "", (), "ViT-B-32", "openai"))
    monkeypatch.setattr(families, "all_families", lambda: twice)
    with pytest.raises(ExportError, match=r"2 families \(OpenAI CLIP, Second\)"):
        family_of("ViT-B-32", "openai")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("siglip", ["SigLIP"]),
        ("SigLIP2", ["SigLIP 2"]),
        ("eva", ["EVA-CLIP", "EVA-02"]),
        ("dfn5b", ["DFN"]),
        ("long clip", ["Long-CLIP"]),
        ("metaclip", ["MetaCLIP 1", "MetaCLIP 2"]),
    ],
)
def test_families_are_found_by_name_alias_and_part(name, found):
    assert [family.name for family in find_families(name)] == found


@pytest.mark.parametrize("name", ["siglpi", "--", ""])
def test_an_unknown_family_is_refused_with_all_names(name):
    with pytest.raises(ExportError, match=re.escape(f"no family is called {name!r}") + r".*Allowed: OpenAI CLIP, "):
        find_families(name)


def test_weights_of_the_other_activation_are_misfits():
    fits = {config: find_model(config) for config in ("ViT-B-32", "ViT-B-32-quickgelu")}
    openai = {config: _named(model.weights, "openai") for config, model in fits.items()}
    assert fits["ViT-B-32"].is_misfit(openai["ViT-B-32"])
    assert not fits["ViT-B-32-quickgelu"].is_misfit(openai["ViT-B-32-quickgelu"])


def _named(weights: tuple[Weights, ...], name: str) -> Weights:
    return next(one for one in weights if one.name == name)
