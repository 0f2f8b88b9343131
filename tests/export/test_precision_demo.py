"""The demo in float16, rounded as a GPU rounds: every answer is float32's."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "export"))

from demo.captions import LABELS
from demo.evaluate import nearest, samples
from tritonclip_export.checkpoints.load import load_checkpoint
from tritonclip_export.frameworks import torch
from tritonclip_export.parity.probes import make_probes, to_uint8, transform_images
from tritonclip_export.spec_builder import build_spec
from tritonclip_export.towers.precision.calibrate import recording
from tritonclip_export.towers.precision.float16 import to_float16
from tritonclip_export.towers.towers import served_towers

SEED, COUNT = 1717, 100


@pytest.mark.parametrize("split", ["seen", "held-out"])
def test_rounding_changes_no_answer(demo: Path, split: str) -> None:
    checkpoint = load_checkpoint(str(demo / "checkpoint"))
    spec = build_spec(checkpoint, checkpoint.state_dict)
    towers = served_towers(checkpoint.build(), checkpoint.model_cfg, spec.image.mean, spec.image.std)
    probes = make_probes(checkpoint.preprocess_cfg, checkpoint.tokenization)
    images = [image for image, _ in samples(split, "original", SEED, COUNT)]
    pixels = to_uint8(transform_images(images, checkpoint.preprocess_cfg), checkpoint.preprocess_cfg)
    inputs = (pixels, checkpoint.tokenization(LABELS))
    calibrations = []
    for tower, probe in zip(towers, (probes.pixels, probes.input_ids), strict=True):
        with torch.no_grad(), recording(tower) as activities:
            tower(probe)
        calibrations.append(activities)
    with torch.no_grad():
        expected = [tower(values).numpy() for tower, values in zip(towers, inputs, strict=True)]
        typed, islands = to_float16(towers, calibrations)
        narrow = [tower(values).numpy() for tower, values in zip(typed, inputs, strict=True)]
    assert islands == [[], []]
    assert min((a * b).sum(axis=1).min() for a, b in zip(narrow, expected, strict=True)) >= 0.9995
    assert max(np.abs(a - b).max() for a, b in zip(narrow, expected, strict=True)) > 1e-6, "nothing was rounded"
    assert (nearest(*narrow) == nearest(*expected)).all()
