"""The options of how a repository is served, for every command that writes its configs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from tritonclip_export.settings import EXIF_MODES, PREPROCESSES

DEFAULT = "default"


# Option, attribute of `settings.Settings`, type, metavar, help.
_OPTIONS: tuple[tuple[str, str, Callable[[str], object], str, str], ...] = (
    ("--max-image-batch", "image_batch", int, "N", "images in a request or a batch (default: 32)"),
    ("--max-text-batch", "text_batch", int, "N", "texts in a request or a batch (default: 64)"),
    (
        "--preprocess-threads",
        "preprocess_threads",
        int,
        "N",
        "small images decoded at a time, each in a process of its own (default: this machine's cores)",
    ),
    (
        "--decoder-processes",
        "decoder_processes",
        int,
        "N",
        "processes that decode large and unusual images within their limits (default: 2)",
    ),
    ("--max-image-bytes", "max_bytes", int, "N", "of an encoded image (default: 33554432)"),
    ("--max-image-pixels", "max_pixels", int, "N", "of an image, width x height (default: 89478485)"),
    ("--image-seconds", "image_seconds", float, "S", "of one core, that decoding an image may take (default: 2)"),
    ("--image-megabytes", "image_megabytes", int, "MB", "of memory that decoding an image may take (default: 500)"),
    ("--threads", "threads", int, "N", "cores that a tower uses on a CPU (default: 0, all of the serving machine)"),
    (
        "--release",
        "release",
        str,
        "YY.MM",
        "the release of tritonserver that will serve (default: 24.10, the embedded)",
    ),
    ("--encoder-instances", "encoder_instances", int, "N", "copies of a tower on each GPU (default: 1)"),
    (
        "--queue-seconds",
        "queue_seconds",
        float,
        "S",
        "the timeout of requests without one, and the longest that counts (default: 20)",
    ),
    ("--max-queue-size", "max_queue_size", int, "N", "requests that may wait for a model (default: 1024)"),
    ("--queue-bytes", "queue_bytes", int, "N", "bytes of the requests that may wait for a model (default: 128 MiB)"),
    ("--max-text-bytes", "max_text_bytes", int, "N", "bytes of one text (default: 64 KiB)"),
    ("--max-split-rows", "max_split_rows", int, "N", "texts in a request that has long ones split (default: 256)"),
    ("--max-split-bytes", "max_split_bytes", int, "N", "bytes of all texts in such a request (default: 1 MiB)"),
    ("--max-scores", "max_scores", int, "N", "images x texts in a request to `similarity` (default: 4194304)"),
    ("--queue-delay-us", "queue_delay_us", int, "N", "microseconds that a batch on a GPU waits to fill (default: 0)"),
)
_SWITCHES = (
    ("--pinned-memory", "pinned_memory", "batches go to the GPU through pinned memory (default: yes)"),
    ("--text-cache", "text_cache", "keep the embeddings of texts in Triton's response cache (default: yes)"),
)


def add_settings(group: argparse._ArgumentGroup, runtimes: Sequence[str]) -> None:
    """Declare the options; one that is not given is None."""
    group.add_argument(
        "--runtime",
        choices=runtimes,
        help="what runs the towers: ONNX Runtime inside the Python backend (default), Triton's own backend for it on a "
        "GPU, or TensorRT engines",
    )
    group.add_argument(
        "--preprocess",
        choices=PREPROCESSES,
        help="what decodes images: the CPU (default), or DALI on the GPU for JPEG, in NVIDIA's container",
    )
    group.add_argument(
        "--exif",
        choices=EXIF_MODES,
        help="turn images upright as their EXIF orientation says (default), or leave them, as open_clip does",
    )
    for option, name, kind, metavar, text in _OPTIONS:
        group.add_argument(option, dest=name, type=kind, metavar=metavar, help=text)
    for option, name, text in _SWITCHES:
        group.add_argument(option, dest=name, action=argparse.BooleanOptionalAction, default=None, help=text)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Attributes of `settings.Settings` that were given."""
    names = ["runtime", "preprocess", "exif", *(option[1] for option in _OPTIONS), *(switch[1] for switch in _SWITCHES)]
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def add_graph_batches(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare the option of TensorRT's runtime alone."""
    parser.add_argument(
        "--graph-batches",
        metavar="N,N",
        help="batch sizes that get a CUDA graph, or `none`; TensorRT alone (`default`: powers of two, the largest)",
    )


def parse_graph_batches(text: str) -> tuple[int, ...] | None:
    """Read "1,8,32", "none", or "default", which is None.

    Raises:
        EngineError: it is something else.
    """
    from tritonclip_export.errors import EngineError

    if text == DEFAULT:
        return None
    try:
        return () if text == "none" else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise EngineError(f"--graph-batches {text} given; write sizes like 1,8,32, none or default") from error
