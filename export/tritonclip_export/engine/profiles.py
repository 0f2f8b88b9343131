"""The optimisation profile of a tower: which shapes its engine takes, and the one that it is tuned for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tritonclip_export.errors import EngineError
from tritonclip_export.repository.configs import read_config
from tritonclip_export.spec import ServingSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The smallest size of an axis, the one that the engine is tuned for, and the largest."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise EngineError(f"the range {self} given; MIN:OPT:MAX must be 1 or more, and ascend")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read "1:8:32"."""
        try:
            low, tuned, high = (int(part) for part in text.split(":"))
        except ValueError as error:
            raise EngineError(f"the range {text!r} given; write MIN:OPT:MAX, such as 1:8:32") from error
        return cls(low, tuned, high)


@dataclass(frozen=True)
class Ranges:
    """What was asked for instead of the repository's own limits."""

    image_batch: Range | None = None
    text_batch: Range | None = None
    text_length: Range | None = None


@dataclass(frozen=True)
class Profile:
    """Shapes of the one input of a tower, the batch first."""

    input_name: str
    min: Shape
    opt: Shape
    max: Shape

    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """In the order in which TensorRT takes them."""
        return self.min, self.opt, self.max


def profiles(repository: Path, spec: ServingSpec, ranges: Ranges) -> dict[str, Profile]:
    """The profile of each encoder, by the model's name: batches from one to what the server's config allows, lengths
    from the shortest bucket to the context.

    Raises:
        EngineError: a range leaves out what the server sends.
    """
    pixels = spec.image.pixel_shape
    images = _batch(repository, "image_encoder", ranges.image_batch, "--image-batch")
    texts = _batch(repository, "text_encoder", ranges.text_batch, "--text-batch")
    lengths = _lengths(spec, ranges.text_length)
    return {
        "image_encoder": Profile("pixels", (images.min, *pixels), (images.opt, *pixels), (images.max, *pixels)),
        "text_encoder": Profile(
            "input_ids", (texts.min, lengths.min), (texts.opt, lengths.opt), (texts.max, lengths.max)
        ),
    }


def _batch(repository: Path, model: str, given: Range | None, option: str) -> Range:
    most = int(read_config(repository / model / "config.pbtxt").max_batch_size)
    # The batch that a loaded server sends, which is where the time goes.
    wanted = given or Range(1, most, most)
    if wanted.min > 1 or wanted.max < most:
        raise EngineError(
            f"{option} {wanted} given, but {model} is served in batches of 1 to {most}; give a range that holds them, "
            "or export again with another limit"
        )
    return wanted


def _lengths(spec: ServingSpec, given: Range | None) -> Range:
    buckets = spec.text.buckets
    wanted = given or Range(buckets[0], buckets[len(buckets) // 2], buckets[-1])
    if wanted.min > buckets[0] or wanted.max < buckets[-1]:
        raise EngineError(
            f"--text-length {wanted} given, but the tokenizer pads to {', '.join(map(str, buckets))}; give a range "
            "that holds them"
        )
    if wanted.max > spec.text.context_length or (len(buckets) == 1 and wanted.min != wanted.max):
        raise EngineError(
            f"--text-length {wanted} given; this text tower takes "
            + (f"up to {spec.text.context_length} ids" if len(buckets) > 1 else f"{buckets[0]} ids and no other number")
        )
    return wanted
