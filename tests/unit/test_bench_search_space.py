"""The settings that a sweep varies: which values it tries unasked, what a grid holds, how both are written."""

from __future__ import annotations

import argparse

import pytest

from tritonclip_bench.tune.search_space import default_values, grid, label, neighbours, parse_vary
from tritonclip_export.errors import RepositoryError
from tritonclip_export.settings import ONNXRUNTIME, PYTHON, TENSORRT, Settings

PRESENT = Settings(preprocess_threads=1, threads=1)
ON_GPU = Settings(runtime=ONNXRUNTIME)


def test_values_by_cores_runtime_and_scenario() -> None:
    assert default_values(Settings(), {"embed_image"}, 8) == {
        "preprocess_threads": [4, 8],
        "threads": [4],
        "image_batch": [64, 128],
    }
    assert default_values(Settings(threads=2), {"embed_text"}, 2) == {"threads": [1], "text_batch": [128]}
    on_gpu = default_values(ON_GPU, {"clip"}, 16)
    assert on_gpu["encoder_instances"] == [2, 3]
    assert on_gpu["queue_delay_us"] == [500, 2000]
    assert "threads" not in on_gpu
    assert default_values(Settings(), {"classify"}, 2, {"onnxruntime", "python"})["runtime"] == [ONNXRUNTIME]
    assert "runtime" not in default_values(Settings(runtime=TENSORRT), {"classify"}, 2, {"onnxruntime"})


def test_no_smaller_batch_is_tried_unasked() -> None:
    """Callers may send as much in one request today."""
    assert all(size > 100 for size in default_values(Settings(image_batch=100), {"embed_image"}, 4)["image_batch"])


def test_a_grid_has_every_combination_but_the_present() -> None:
    settings = grid(PRESENT, {"threads": (0, 1), "preprocess_threads": (1, 2)})
    assert [label(one, PRESENT) for one in settings] == [
        "threads=0",
        "preprocess_threads=2, threads=0",
        "preprocess_threads=2",
    ]


def test_a_grid_leaves_out_what_no_runtime_takes_together() -> None:
    settings = grid(Settings(), {"runtime": (PYTHON, ONNXRUNTIME), "queue_delay_us": (0, 500)})
    assert [(one.runtime, one.queue_delay_us) for one in settings] == [(ONNXRUNTIME, 0), (ONNXRUNTIME, 500)]


def test_a_value_that_is_never_allowed_is_refused() -> None:
    with pytest.raises(RepositoryError, match="queue_delay_us is 500 for the runtime onnxruntime-python"):
        grid(Settings(), {"queue_delay_us": (0, 500)})
    assert neighbours(Settings(), "queue_delay_us", (500,)) == []


def test_vary() -> None:
    assert parse_vary("preprocess_threads=1,2,2") == ("preprocess_threads", (1, 2))
    assert parse_vary("pinned_memory=no,yes") == ("pinned_memory", (False, True))
    assert label(ON_GPU.changed({"pinned_memory": False}), ON_GPU) == "pinned_memory=no"


@pytest.mark.parametrize("text", ["preprocess=cpu,dali", "threads", "threads=", "threads=few", "pinned_memory=1", "=1"])
def test_what_is_no_vary(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"given; (write NAME=VALUE,VALUE|give (whole|yes))"):
        parse_vary(text)
