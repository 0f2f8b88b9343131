"""Edits the checked-in `config.pbtxt` files through Triton's own `ModelConfig` message.

Only what depends on the checkpoint or the runtime is changed; everything else is served as it reads in
`model_repository/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tritonclip_export.errors import RepositoryError
from tritonclip_export.spec import ServingSpec

ENSEMBLES = ("embed_image", "embed_text", "clip")
EMBEDDINGS = ("embedding", "image_embedding", "text_embedding", "image_features", "text_features")
HEADER = "# Written by `tritonclip export`; the commented original is in tritonclip's model_repository/.\n"


_LEAST = {"image_batch": 1, "text_batch": 1, "preprocess_instances": 1, "threads": 0}


@dataclass(frozen=True)
class Limits:
    """How much the server takes at once.

    Attributes:
        image_batch, text_batch: items per request and per dynamic batch.
        preprocess_instances: processes that decode pictures, each on one core.
        threads: cores that a tower uses; 0 takes every core the server may use.
    """

    image_batch: int = 32
    text_batch: int = 64
    preprocess_instances: int = 2
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise RepositoryError(f"{name} is {getattr(self, name)}; it must be at least {least}")


def templates() -> Path:
    """The checked-in `model_repository/`: of the source tree, or the copy inside an installed package."""
    here = Path(__file__).resolve()
    candidates = (here.parents[2] / "model_repository", here.parent / "_model_repository")
    for folder in candidates:
        if (folder / "clip" / "config.pbtxt").is_file():
            return folder
    raise RepositoryError(f"tritonclip is installed without its model_repository (looked in {candidates})")


def read_config(path: Path) -> ModelConfig:
    """Parse a `config.pbtxt`.

    Raises:
        RepositoryError: the file is missing or is not a model configuration.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RepositoryError(f"{path} is no Triton model configuration ({error})") from error
    return parse_config(text, path)


def parse_config(text: str, where: object) -> ModelConfig:
    """Parse the text of a `config.pbtxt`, which stands `where`.

    Raises:
        RepositoryError: it is no model configuration.
    """
    try:
        config: ModelConfig = text_format.Parse(text, ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(f"{where} is no Triton model configuration ({error})") from error
    return config


def write_config(path: Path, config: ModelConfig) -> None:
    """Write a `config.pbtxt`."""
    path.write_text(config_text(config), encoding="utf-8")


def config_text(config: ModelConfig) -> str:
    """As a `config.pbtxt`; `max_batch_size: 0` is written out, because Triton wants to see it."""
    zero = "" if config.max_batch_size else "max_batch_size: 0\n"
    return f"{HEADER}{text_format.MessageToString(config)}{zero}"


def apply_spec(repository: Path, spec: ServingSpec, limits: Limits) -> None:
    """Bring every configuration below `repository` in line with the checkpoint."""
    for name, parameters in _parameters(spec, limits).items():
        path = repository / name / "config.pbtxt"
        config = read_config(path)
        for key, value in parameters.items():
            config.parameters[key].string_value = value
        _set_sizes(config, spec, limits)
        write_config(path, config)


def _parameters(spec: ServingSpec, limits: Limits) -> dict[str, Mapping[str, str]]:
    image, text, scoring = spec.image, spec.text, spec.scoring
    tower = {"threads": str(limits.threads)}
    tokenizer = {
        "context_length": str(text.context_length),
        "buckets": ",".join(str(length) for length in text.buckets),
        "pad_id": str(text.pad_id),
        "sot_id": str(text.sot_id),
        "eot_id": str(text.eot_id),
        "clean": text.clean,
        "kind": text.kind,
        "zero_ids": ",".join(str(value) for value in text.zero_ids),
    }
    ensemble = {"serving_spec": spec.to_json(), "fingerprint": spec.fingerprint}
    return {
        "preprocess": {
            "image_height": str(image.height),
            "image_width": str(image.width),
            "resize_mode": image.resize_mode,
            "interpolation": image.interpolation,
            "fill_color": ",".join(str(value) for value in image.fill_color),
            "crop_offset": image.crop_offset,
            "to_rgb": image.to_rgb,
            "patch_size": str(image.patch_size or 0),
            "max_num_patches": str(image.max_num_patches or 0),
        },
        "tokenizer": tokenizer,
        "split_text": tokenizer,
        "image_encoder": tower,
        "text_encoder": tower,
        "similarity": {
            "scoring": scoring.kind,
            "logit_scale": repr(scoring.logit_scale),
            "logit_bias": repr(scoring.logit_bias),
        },
        "text_gate": {},
        "cached_text_encoder": {},
        **dict.fromkeys(ENSEMBLES, ensemble),
    }


def _set_sizes(config: ModelConfig, spec: ServingSpec, limits: Limits) -> None:
    pixels = list(spec.image.pixel_shape)
    for tensor in (*config.input, *config.output):
        if tensor.name == "pixels":
            tensor.dims[:] = pixels
        elif tensor.name in EMBEDDINGS:
            tensor.dims[-1] = spec.embedding_dim
    for warmup in config.model_warmup:
        if "pixels" in warmup.inputs:
            warmup.inputs["pixels"].dims[:] = pixels
        if "input_ids" in warmup.inputs:
            warmup.inputs["input_ids"].dims[:] = [spec.text.buckets[0]]
    if config.max_batch_size:
        takes_text = config.name in ("tokenizer", "text_encoder", "cached_text_encoder", "embed_text")
        config.max_batch_size = limits.text_batch if takes_text else limits.image_batch
    if config.name == "preprocess":
        config.instance_group[0].count = limits.preprocess_instances
