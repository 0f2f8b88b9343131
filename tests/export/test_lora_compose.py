"""TIES and DARE on full differences, against PEFT's own functions; seeds repeat; the report says what was done."""

from __future__ import annotations

import json

import pytest

from lora_models import random_state_dict, train_adapter
from peft_methods import train
from tritonclip_export.adapters.lora import Adapter, merge_adapters, read_adapter
from tritonclip_export.adapters.lora.compose import Composition, drop, trim
from tritonclip_export.adapters.lora.merge import AnyAdapter
from tritonclip_export.errors import AdapterError
from tritonclip_export.frameworks import torch

STATE_DICT = random_state_dict()
WEIGHTS = (0.5, -0.75, 1.5)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[AnyAdapter]:
    """Of two libraries and two methods, on modules that overlap in part."""
    folder = tmp_path_factory.mktemp("adapters")
    targets = {"one": ("open_clip", ["attn", "c_fc"]), "two": ("hf", ["q_proj", "fc1", "visual_projection"])}
    for index, (name, (namespace, modules)) in enumerate(targets.items()):
        train_adapter(folder / name, namespace, STATE_DICT, seed=index, target_modules=modules)
    train(folder / "three", "hf", "LOHA", target_modules=["fc1", "k_proj"])
    return [read_adapter(folder / name) for name in ("one", "two", "three")]


def merged(adapters: list[AnyAdapter], how: Composition) -> dict[str, torch.Tensor]:
    return merge_adapters(STATE_DICT, list(zip(adapters, WEIGHTS, strict=True)), how=how).state_dict


def differences(adapters: list[AnyAdapter]) -> list[dict[str, torch.Tensor]]:
    """Every adapter's own, of every tensor; zeros where it changes nothing."""
    alone = [merge_adapters(STATE_DICT, [(adapter, 1.0)]).state_dict for adapter in adapters]
    return [{name: one[name] - base for name, base in STATE_DICT.items()} for one in alone]


def changed(result: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, base in STATE_DICT.items() if not torch.equal(result[name], base)]


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties_is_pefts_on_full_differences(density: float, adapters: list[AnyAdapter]) -> None:
    from peft.utils.merge_utils import ties

    result, alone = merged(adapters, Composition("ties", density)), differences(adapters)
    assert len(changed(result)) == 13
    for name, base in STATE_DICT.items():
        wanted = ties([deltas[name] for deltas in alone], torch.tensor(WEIGHTS), density)
        assert torch.allclose(result[name] - base, wanted, atol=2e-6), name


def test_ties_is_not_the_sum(adapters: list[AnyAdapter]) -> None:
    summed, elected = merged(adapters, Composition()), merged(adapters, Composition("ties", 1.0))
    shared = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    assert (summed[shared] - elected[shared]).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare_is_pefts_with_the_same_values_dropped(
    method: str, adapters: list[AnyAdapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.utils import merge_utils

    kept: dict[str, list[torch.Tensor]] = {}
    sparsify = Composition.sparsify

    def spy(how: Composition, delta: torch.Tensor, adapter: int, name: str) -> torch.Tensor:
        kept.setdefault(name, []).append(sparsify(how, delta, adapter, name))
        return kept[name][-1]

    monkeypatch.setattr(Composition, "sparsify", spy)
    weights_of = {name: [] for name in STATE_DICT}
    for deltas, weight in zip(differences(adapters), WEIGHTS, strict=True):
        for name, delta in deltas.items():
            weights_of[name] += [weight] if delta.abs().max() > 0 else []
    kept.clear()
    result = merged(adapters, Composition(method, 0.4, seed=3))
    # PEFT draws its own values; given ours, its arithmetic must be ours.
    monkeypatch.setattr(merge_utils, "prune", lambda tensor, *_, **__: tensor)
    combine = {"dare": merge_utils.dare_linear, "dare_ties": merge_utils.dare_ties}[method]
    assert set(kept) == set(changed(result))
    for name, parts in kept.items():
        wanted = combine(parts, torch.tensor(weights_of[name]), 0.4)
        assert torch.allclose(result[name] - STATE_DICT[name], wanted, atol=2e-6), name


def test_dare_keeps_its_share_rescaled(adapters: list[AnyAdapter]) -> None:
    how = Composition("dare", 0.3, seed=1)
    delta = torch.randn(400, 500)
    kept = how.sparsify(delta, 0, "a")
    rate = (kept != 0).float().mean().item()
    assert rate == pytest.approx(0.3, abs=0.005)
    assert torch.allclose(kept[kept != 0], delta[kept != 0] / 0.3)
    others = [
        how.sparsify(delta, 1, "a"),
        how.sparsify(delta, 0, "b"),
        Composition("dare", 0.3, 2).sparsify(delta, 0, "a"),
    ]
    for other in others:
        together = ((kept != 0) & (other != 0)).float().mean().item()
        assert together == pytest.approx(0.09, abs=0.005)


def test_dare_draws_are_the_same_everywhere() -> None:
    """A change here would make exports with a stored seed impossible to repeat."""
    kept = Composition("dare", 0.5, seed=7).sparsify(torch.ones(16), 0, "visual.proj")
    assert (kept != 0).int().tolist() == [1, 1, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_seed_repeats(method: str, adapters: list[AnyAdapter]) -> None:
    one, again, other = (merged(adapters, Composition(method, 0.5, seed)) for seed in (4, 4, 5))
    assert all(torch.equal(one[name], again[name]) for name in STATE_DICT)
    assert any(not torch.equal(one[name], other[name]) for name in STATE_DICT)
    state = torch.get_rng_state()
    merged(adapters, Composition(method, 0.5, 4))
    assert torch.equal(torch.get_rng_state(), state)


def test_density_one_drops_nothing(adapters: list[AnyAdapter]) -> None:
    summed, dare = merged(adapters, Composition()), merged(adapters, Composition("dare", 1.0))
    assert all(torch.equal(summed[name], dare[name]) for name in STATE_DICT)
    ties, dare_ties = merged(adapters, Composition("ties", 1.0)), merged(adapters, Composition("dare_ties", 1.0))
    assert all(torch.equal(ties[name], dare_ties[name]) for name in STATE_DICT)


def test_ties_on_one_adapter_trims_it(adapters: list[AnyAdapter]) -> None:
    adapter = adapters[1]
    assert isinstance(adapter, Adapter)
    result = merge_adapters(STATE_DICT, [(adapter, 2.0)], how=Composition("ties", 0.25)).state_dict
    whole = merge_adapters(STATE_DICT, [(adapter, 1.0)]).state_dict
    for name in changed(whole):
        wanted = STATE_DICT[name] + 2.0 * trim(whole[name] - STATE_DICT[name], 0.25)
        assert torch.allclose(result[name], wanted, atol=1e-6), name


def test_trim_keeps_the_largest() -> None:
    assert trim(torch.tensor([[1.0, -5.0], [3.0, -2.0]]), 0.5).tolist() == [[0.0, -5.0], [3.0, 0.0]]
    assert trim(torch.tensor(3.0), 0.5).tolist() == 0.0


def test_drop_of_a_scalar() -> None:
    values = {drop(torch.tensor(1.0), 0.5, torch.Generator().manual_seed(seed)).item() for seed in range(20)}
    assert values == {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_base(dtype: torch.dtype, adapters: list[AnyAdapter]) -> None:
    low = {name: tensor.to(dtype) for name, tensor in STATE_DICT.items()}
    high = {name: tensor.float() for name, tensor in low.items()}
    given = list(zip(adapters, WEIGHTS, strict=True))
    one, other = (merge_adapters(base, given, how=Composition("dare_ties", 0.5)).state_dict for base in (low, high))
    assert all(torch.equal(one[name], other[name].to(dtype)) for name in one)


def test_report_holds_method_density_and_seed(adapters: list[AnyAdapter]) -> None:
    given = list(zip(adapters, WEIGHTS, strict=True))
    report = merge_adapters(STATE_DICT, given, how=Composition("dare", 0.5, 11)).report
    written = json.loads(json.dumps(report.to_dict()))
    assert written["composition"] == {"method": "dare", "density": 0.5, "seed": 11}
    assert [entry["method"] for entry in written["adapters"]] == ["LORA", "LORA", "LOHA"]
    plain = merge_adapters(STATE_DICT, given).report.to_dict()
    assert plain["composition"]["method"] == "sum"


@pytest.mark.parametrize(
    ("method", "density", "words"),
    [
        ("mean", None, "'mean'; allowed: sum, ties, dare, dare_ties"),
        ("sum", 0.5, "has no effect on a sum"),
        *((method, density, "above 0 and at most 1") for method in ("ties", "dare") for density in (None, 0, -1, 1.01)),
        ("dare_ties", float("nan"), "above 0 and at most 1"),
    ],
)
def test_compositions_that_mean_nothing(method: str, density: float | None, words: str) -> None:
    with pytest.raises(AdapterError, match=words):
        Composition(method, density)  # type: ignore[arg-type]
