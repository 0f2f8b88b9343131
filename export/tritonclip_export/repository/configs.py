"""Edits the checked-in `config.pbtxt` files through Triton's own `ModelConfig` message.

Only what depends on the checkpoint or the runtime is changed; everything else is served as it reads in
`model_repository/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from tritonclip_export.errors import RepositoryError
from tritonclip_export.repository.dali import DECODER, decoder_config, require_dali, route
from tritonclip_export.repository.encoders import ENCODERS, encoder_config
from tritonclip_export.repository.templates import templates
from tritonclip_export.settings import DALI, Settings
from tritonclip_export.spec import ServingSpec

ENSEMBLES = ("embed_image", "embed_text", "clip")
# The models that requests enter a tower by, and the setting that says how many items one may have.
DOORS = {"preprocess": "image_batch", "tokenizer": "text_batch", "split_text": "max_split_rows"}
# What one request may cost: model, parameter, setting.
LIMITS = (
    ("tokenizer", "max_bytes", "max_text_bytes"),
    ("split_text", "max_bytes", "max_text_bytes"),
    ("split_text", "max_request_bytes", "max_split_bytes"),
    ("similarity", "max_scores", "max_scores"),
)
# A request that waited so long for a door to see it is rejected: the door counts a timeout from then on.
DOOR_SECONDS = 1.0
EMBEDDINGS = ("embedding", "image_embedding", "text_embedding", "image_features", "text_features")
HEADER = "# Written by tritonclip; the commented original is in its model_repository/.\n"
CONFIG = "config.pbtxt"
SERVING_SPEC = "serving_spec"


def read_config(path: Path) -> ModelConfig:
    """Parse a `config.pbtxt`.

    Raises:
        RepositoryError: the file is missing or is not a model configuration.
    """
    try:
        config: ModelConfig = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise RepositoryError(f"{path} is not a valid config.pbtxt ({error})") from error
    return config


def to_text(config: ModelConfig) -> str:
    """As a `config.pbtxt`; `max_batch_size: 0` is written out, because Triton wants to see it."""
    zero = "" if config.max_batch_size else "max_batch_size: 0\n"
    return f"{HEADER}{text_format.MessageToString(config)}{zero}"


def write_configs(repository: Path, configs: Mapping[str, ModelConfig]) -> None:
    """Write the `config.pbtxt` of each model, by its folder's name."""
    for name, config in configs.items():
        (repository / name).mkdir(parents=True, exist_ok=True)
        (repository / name / CONFIG).write_text(to_text(config), encoding="utf-8")


def read_configs(repository: Path) -> dict[str, ModelConfig]:
    """Every model's configuration, by its folder's name."""
    return {path.parent.name: read_config(path) for path in sorted(repository.glob(f"*/{CONFIG}"))}


def served_configs(
    configs: Mapping[str, ModelConfig],
    spec: ServingSpec,
    settings: Settings,
    engines: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, ModelConfig]:
    """`configs` of a whole repository, those of its classifiers too, in line with checkpoint and settings.

    Args:
        engines: of each encoder, as the manifest records them; none unless the runtime is `tensorrt`.

    Raises:
        EngineError: the runtime is `tensorrt`, and an engine is missing or too small.
        SpecError: DALI cannot make this tower's images.
    """
    parameters = _parameters(spec)
    made = {name: ModelConfig.FromString(config.SerializeToString()) for name, config in configs.items()}
    for name, config in made.items():
        for key, value in parameters.get(name, {}).items():
            config.parameters[key].string_value = value
        if SERVING_SPEC in config.parameters:
            config.parameters[SERVING_SPEC].string_value = spec.to_json()
        _set_sizes(config, spec, settings)
        _set_queue(config, settings)
        if name in DOORS:
            _set_door(config, settings)
        if name == "preprocess":
            _set_images(config, settings)
        for model, key, setting in LIMITS:
            if name == model:
                config.parameters[key].string_value = str(getattr(settings, setting))
        if config.HasField("response_cache"):
            config.response_cache.enable = settings.text_cache
    route(made["preprocess"], settings)
    made.pop(DECODER, None)
    if settings.preprocess == DALI:
        require_dali(spec.image, settings)
        made[DECODER] = decoder_config(read_config(templates() / DECODER / CONFIG), spec.image, settings)
        _set_queue(made[DECODER], settings)
    for name in ENCODERS:
        template = read_config(templates() / name / CONFIG)
        made[name] = encoder_config(made[name], template, spec, settings, engines.get(name, ()))
    return made


def _parameters(spec: ServingSpec) -> dict[str, Mapping[str, str]]:
    image, text, scoring = spec.image, spec.text, spec.scoring
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
    ensemble = {SERVING_SPEC: spec.to_json(), "fingerprint": spec.fingerprint}
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
        "similarity": {
            "scoring": scoring.kind,
            "logit_scale": repr(scoring.logit_scale),
            "logit_bias": repr(scoring.logit_bias),
        },
        **dict.fromkeys(ENSEMBLES, ensemble),
    }


def _set_sizes(config: ModelConfig, spec: ServingSpec, settings: Settings) -> None:
    pixels = list(spec.image.pixel_shape)
    for tensor in (*config.input, *config.output):
        if tensor.name == "pixels":
            # A model that does not batch has the number of images as a dim of its own.
            tensor.dims[:] = pixels if config.max_batch_size else [-1, *pixels]
        elif tensor.name in EMBEDDINGS:
            tensor.dims[-1] = spec.embedding_dim
    for warmup in config.model_warmup:
        if "pixels" in warmup.inputs:
            warmup.inputs["pixels"].dims[:] = pixels
        if "input_ids" in warmup.inputs:
            warmup.inputs["input_ids"].dims[:] = [spec.text.buckets[0]]
    if config.max_batch_size:
        takes_text = config.name in ("text_encoder", "cached_text_encoder", "embed_text")
        config.max_batch_size = settings.text_batch if takes_text else settings.image_batch


def _set_images(preprocess: ModelConfig, settings: Settings) -> None:
    for key, value in {
        "threads": settings.preprocess_threads,
        "decoder_processes": settings.decoder_processes,
        "max_pixels": settings.max_pixels,
        "max_bytes": settings.max_bytes,
        "image_seconds": settings.image_seconds,
        "image_megabytes": settings.image_megabytes,
        "exif": settings.exif,
    }.items():
        preprocess.parameters[key].string_value = f"{value:g}" if isinstance(value, float) else str(value)


def _set_queue(config: ModelConfig, settings: Settings) -> None:
    if config.HasField("dynamic_batching"):
        policy = config.dynamic_batching.default_queue_policy
        policy.default_timeout_microseconds = round(settings.queue_seconds * 1e6)
        policy.max_queue_size = settings.triton_queue_size


def _set_door(config: ModelConfig, settings: Settings) -> None:
    values = {**settings.own_queue, "max_batch": str(getattr(settings, DOORS[config.name]))}
    for key, value in values.items():
        config.parameters[key].string_value = value
