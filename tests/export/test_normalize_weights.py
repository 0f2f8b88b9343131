"""State dicts in the shapes in which people keep them."""

import pytest

from tiny_clip import MODEL_CFG, tiny_state_dict
from tritonclip_export.checkpoints.model import load_strictly, new_model
from tritonclip_export.checkpoints.normalize_weights import normalize_weights, stretch_context
from tritonclip_export.errors import CheckpointError
from tritonclip_export.frameworks import open_clip, torch


def test_a_plain_text_tower_moves_below_text_where_the_config_wants_it() -> None:
    cfg = {**MODEL_CFG, "custom_text": True}
    adopted = normalize_weights(tiny_state_dict(), cfg)
    load_strictly(new_model(cfg), adopted, "tiny")
    assert "text.ln_final.weight" in adopted
    assert "visual.transformer.resblocks.0.ln_1.weight" in adopted


def test_a_scale_of_one_value_becomes_the_scalar_of_the_model() -> None:
    tensors = tiny_state_dict()
    tensors["logit_scale"] = tensors["logit_scale"].reshape(1)
    assert normalize_weights(tensors, dict(MODEL_CFG))["logit_scale"].shape == ()


def test_long_clip_reads_the_first_twenty_positions_of_one_table_and_the_rest_of_the_other() -> None:
    kept, trained = torch.randn(248, 32), torch.randn(248, 32)
    cfg = dict(MODEL_CFG)
    adopted = normalize_weights({"positional_embedding": kept, "positional_embedding_res": trained}, cfg)
    assert torch.equal(adopted["positional_embedding"][:20], kept[:20])
    assert torch.equal(adopted["positional_embedding"][20:], trained[20:])
    assert cfg["text_cfg"]["context_length"] == 248
    assert MODEL_CFG["text_cfg"]["context_length"] == 77


def test_half_a_long_clip_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"positional_embedding is missing"):
        normalize_weights({"positional_embedding_res": torch.zeros(248, 8)}, dict(MODEL_CFG))


def long_clip_loop(table: torch.Tensor) -> torch.Tensor:
    """The stretch as Long-CLIP's training code writes it, position by position."""
    longer = torch.zeros(248, table.shape[1])
    longer[:20] = table[:20]
    for i in range(56):
        for j in range(4):
            longer[20 + 4 * i + j] = (1 - j / 4) * table[20 + i] + j / 4 * table[21 + i]
    for j in range(4):
        longer[244 + j] = table[76] + j / 4 * (table[76] - table[75])
    return longer


def test_stretching_is_that_of_long_clip() -> None:
    tensors = tiny_state_dict()
    stretched, cfg = stretch_context(tensors, dict(MODEL_CFG))
    expected = long_clip_loop(tensors["positional_embedding"])
    assert torch.allclose(stretched["positional_embedding"], expected, atol=1e-6)
    load_strictly(new_model(cfg), stretched, "stretched")


def test_a_short_text_is_embedded_as_before_the_stretch() -> None:
    tensors = tiny_state_dict()
    stretched, cfg = stretch_context(tensors, dict(MODEL_CFG))
    before, after = new_model(MODEL_CFG), new_model(cfg)
    load_strictly(before, tensors, "77")
    load_strictly(after, stretched, "248")
    text = ["a photo of a cat on a mat"]
    with torch.no_grad():
        short = before.encode_text(open_clip.SimpleTokenizer(context_length=77)(text))
        long = after.encode_text(open_clip.SimpleTokenizer(context_length=248)(text))
    assert torch.allclose(short, long, atol=1e-5)


@pytest.mark.parametrize("name", ["positional_embedding", "elsewhere"])
def test_only_77_positions_can_be_stretched(name: str) -> None:
    with pytest.raises(CheckpointError, match="makes 248 text positions of 77"):
        stretch_context({name: torch.zeros(64, 8)}, dict(MODEL_CFG))
