"""The serving spec: every number the server and its clients need, read from the checkpoint once.

It travels in the repository, as JSON in the ensembles' `config.pbtxt` (`serving_spec`) and in
`manifest.json`, so that nobody types it again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from tritonclip_export.errors import SpecError

RESIZE_MODES = ("shortest", "longest", "squash", "naflex")
INTERPOLATIONS = ("bicubic", "bilinear")
CROP_OFFSETS = ("round", "floor")
TO_RGB = ("last", "first", "white")
TOKENIZERS = ("clip", "hf")
CLEANINGS = ("lower", "whitespace", "canonicalize", "none", "punctuation")
POOLINGS = ("argmax", "eos", "first", "last", "class", "mean")
SCORINGS = ("softmax", "sigmoid")
PRECISIONS = ("float32", "float16", "int8")

# Lengths below the context that short texts are cut to; few, so that requests still batch together.
SHORT_BUCKETS = (16, 32)


@dataclass(frozen=True)
class ImageSpec:
    """How an encoded image becomes the tower's pixels.

    Attributes:
        height, width: pixels of the tower's input; of "naflex" those of a square image as the tower was trained on.
        mean, std: per RGB channel, for values in [0, 1].
        interpolation: of the antialiased resize.
        resize_mode: "shortest" side to size, then center crop; "longest" side to size, then pad with
            `fill_color`; "squash" both sides; or "naflex", both sides to whole patches, as many as `max_num_patches`
            allows at nearly the image's aspect ratio.
        fill_color: RGB, 0 to 255.
        crop_offset: where a center crop begins if half of what is cut off is no whole number: "round" half to even
            (torchvision), or "floor" (transformers).
        to_rgb: "last" resizes in the image's own mode (open_clip), "first" converts before, "white" does so too and
            lays what is transparent over white (transformers' `do_convert_rgb`).
        patch_size, max_num_patches: of "naflex" alone: the side of a patch, and the most that an image becomes.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resize_mode: str
    fill_color: tuple[int, int, int]
    crop_offset: str = "round"
    to_rgb: str = "last"
    patch_size: int | None = None
    max_num_patches: int | None = None

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Of the uint8 `pixels` of one image: [H, W, 3], or the rows that `naflex` describes."""
        if self.patch_size is None or self.max_num_patches is None:
            return self.height, self.width, 3
        return 1 + self.max_num_patches, 3 * self.patch_size**2

    def __post_init__(self) -> None:
        if {self.patch_size is not None, self.max_num_patches is not None} != {self.resize_mode == "naflex"}:
            raise SpecError("patch_size and max_num_patches are given with the resize_mode naflex, and with no other")
        _require("crop_offset", self.crop_offset, CROP_OFFSETS)
        _require("to_rgb", self.to_rgb, TO_RGB)
        _require("interpolation", self.interpolation, INTERPOLATIONS)
        _require("resize_mode", self.resize_mode, RESIZE_MODES)
        _require_finite("mean", self.mean)
        _require_finite("std", self.std, above=0)
        if not all(isinstance(level, int) and 0 <= level <= 255 for level in self.fill_color):
            raise SpecError(f"fill_color is {self.fill_color}; allowed: whole numbers from 0 to 255")


@dataclass(frozen=True)
class TextSpec:
    """How a text becomes token ids.

    Attributes:
        context_length: tokens the tower was trained on; longer texts are cut, the last id is `eot_id`.
        buckets: lengths the tokenizer pads to, ascending; the last is `context_length`. Only a causal
            tower that pools at the end of text gives the same embedding at every length.
        clean: what is done to a text before: open_clip's "lower", "whitespace" or "canonicalize"; "none"; or
            "punctuation", which transformers' SigLIP tokenizer takes out.
        pooling: the position that becomes the embedding: "argmax" of the ids, the first `eot_id` ("eos"), the
            "first" or the "last" one, a "class" token that the tower adds, or the "mean" over what is no padding.
        kind: "clip" for CLIP's own byte-pair encoding, "hf" for a file of the `tokenizers` library.
        zero_ids: ids that become 0 after tokenizing.
    """

    context_length: int
    vocab_size: int
    buckets: tuple[int, ...]
    pad_id: int
    sot_id: int
    eot_id: int
    clean: str
    pooling: str
    kind: str = "clip"
    zero_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require("kind", self.kind, TOKENIZERS)
        _require("clean", self.clean, CLEANINGS)
        _require("pooling", self.pooling, POOLINGS)


@dataclass(frozen=True)
class ScoringSpec:
    """How a cosine becomes a probability: kind(logit_scale * cosine + logit_bias).

    `logit_scale` is already exponentiated.
    """

    kind: str
    logit_scale: float
    logit_bias: float

    def __post_init__(self) -> None:
        _require("scoring", self.kind, SCORINGS)
        _require_finite("logit_scale", (self.logit_scale,), above=0)
        _require_finite("logit_bias", (self.logit_bias,))


@dataclass(frozen=True)
class ServingSpec:
    """Everything downstream of the merged weights; see the module.

    `fingerprint` is the SHA-256 of merged weights, spec (but for its names) and precision: embeddings of
    equal fingerprints are comparable.
    """

    name: str
    architecture: str
    embedding_dim: int
    image: ImageSpec
    text: TextSpec
    scoring: ScoringSpec
    precision: str = "float32"
    runtime: str = "onnxruntime-python"
    fingerprint: str = ""

    def __post_init__(self) -> None:
        _require("precision", self.precision, PRECISIONS)

    def to_json(self) -> str:
        """One line of JSON, keys sorted, so that equal specs are equal strings.

        What `image` leaves at its default is left out, so that a later field changes no earlier fingerprint.
        """
        defaults = {entry.name: entry.default for entry in fields(ImageSpec)}
        image = {key: value for key, value in asdict(self.image).items() if value != defaults[key]}
        return json.dumps({**asdict(self), "image": image}, sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServingSpec:
        """Read what `to_json` wrote; raises SpecError that names what is missing or unknown."""
        try:
            return cls(
                **{
                    **values,
                    "image": ImageSpec(**_tuples(values["image"])),
                    "text": TextSpec(**_tuples(values["text"])),
                    "scoring": ScoringSpec(**values["scoring"]),
                }
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(f"the serving spec is incomplete or has unknown keys: {error}") from error

    def with_fingerprint(self, fingerprint: str) -> ServingSpec:
        """The same spec, stamped."""
        return replace(self, fingerprint=fingerprint)


def text_buckets(context_length: int, *, any_length: bool) -> tuple[int, ...]:
    """Lengths to pad to: the short ones too where `any_length` gives the same embedding."""
    short = tuple(length for length in SHORT_BUCKETS if length < context_length) if any_length else ()
    return (*short, context_length)


def _require_finite(name: str, values: Sequence[Any], above: float = -math.inf) -> None:
    if not all(isinstance(value, (int, float)) and above < value < math.inf for value in values):
        than = f" above {above:g}" if above > -math.inf else ""
        raise SpecError(f"{name} is {', '.join(map(str, values))}; allowed: finite numbers{than}")


def _require(what: str, given: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise SpecError(f"{what} is {given!r}; allowed: {', '.join(allowed)}")


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
