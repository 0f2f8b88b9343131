"""Attention that projects its heads by itself, as pooling heads do: what calibration sees, and what stays wide."""

from __future__ import annotations

import pytest
from torch import nn

from tritonclip_export.frameworks import torch
from tritonclip_export.towers.precision.calibrate import recording
from tritonclip_export.towers.precision.float16 import LIMIT, MOST_SCORE, to_float16

WIDTH, HEADS = 32, 4


class SigLIPPool(nn.Module):
    """[N, L, WIDTH], of which a learned query takes its share."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(self.probe.expand(len(values), -1, -1), values, values, need_weights=False)[0][:, 0].float()

    def heads(self, values: torch.Tensor) -> list[torch.Tensor]:
        sources = (self.probe.expand(len(values), -1, -1), values, values)
        weights, biases = self.head.in_proj_weight.chunk(3), self.head.in_proj_bias.chunk(3)
        return [x @ weight.T + bias for x, weight, bias in zip(sources, weights, biases, strict=True)]

    def enlarge(self, queries: float, values: float) -> None:
        self.head.in_proj_weight.data[:WIDTH] *= queries
        self.head.in_proj_weight.data[2 * WIDTH :] *= values
        self.head.out_proj.weight.data /= values


class ResNetPool(nn.Module):
    """The same values as a grid of 4 x 4, to which their mean is added as the place that is read."""

    def __init__(self) -> None:
        super().__init__()
        from open_clip.modified_resnet import AttentionPool2d

        self.head = AttentionPool2d(4, WIDTH, HEADS, WIDTH)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.head(values.transpose(1, 2).unflatten(2, (4, 4))).float()

    def heads(self, values: torch.Tensor) -> list[torch.Tensor]:
        rows = torch.cat([values.mean(dim=1, keepdim=True), values], dim=1) + self.head.positional_embedding
        return [self.head.q_proj(rows), self.head.k_proj(rows), self.head.v_proj(rows)]

    def enlarge(self, queries: float, values: float) -> None:
        self.head.q_proj.weight.data *= queries
        self.head.v_proj.weight.data *= values
        self.head.c_proj.weight.data /= values


Pool = SigLIPPool | ResNetPool


@pytest.fixture(params=[SigLIPPool, ResNetPool])
def pool(request: pytest.FixtureRequest) -> Pool:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def values() -> torch.Tensor:
    return torch.randn(3, 16, WIDTH, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def narrowed(pool: Pool, values: torch.Tensor) -> tuple[float, list[str]]:
    """The least cosine of float16 with float32, and the islands."""
    with recording(pool) as activities:
        expected = pool(values)
    (typed,), (islands,) = to_float16([pool], [activities])
    return float(nn.functional.cosine_similarity(typed(values), expected).min()), islands


@torch.no_grad()
def test_what_is_projected_inside_is_seen(pool: Pool, values: torch.Tensor) -> None:
    heads = pool.heads(values)
    query, key, _ = (one.unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in heads)
    scores = query @ key.transpose(-2, -1) / (WIDTH / HEADS) ** 0.5
    with recording(pool) as activities:
        pool(values)
    assert activities["head"].scores == pytest.approx(float(scores.abs().max()), rel=1e-5)
    assert activities["head"].heads == pytest.approx(max(float(one.abs().max()) for one in heads), rel=1e-5)


def test_usual_values_are_no_island(pool: Pool, values: torch.Tensor) -> None:
    cosine, islands = narrowed(pool, values)
    assert islands == []
    assert cosine >= 0.9999


@pytest.mark.parametrize(
    ("queries", "own"), [(20 * MOST_SCORE, 1.0), (1.0, 100 * LIMIT)], ids=["large scores", "values beyond float16"]
)
def test_what_leaves_the_range_inside_stays_in_float32(
    pool: Pool, values: torch.Tensor, queries: float, own: float
) -> None:
    pool.enlarge(queries, own)
    cosine, islands = narrowed(pool, values)
    assert "head" in islands
    assert cosine >= 0.9999
