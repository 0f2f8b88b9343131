"""What runs a tower: ONNX Runtime in the Python backend, Triton's own ONNX Runtime backend, or a TensorRT engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

from tritonclip_export.errors import EngineError
from tritonclip_export.settings import ONNXRUNTIME, PYTHON, TENSORRT, Settings
from tritonclip_export.spec import ServingSpec

# By the model's name, what its tower embeds.
ENCODERS = {"image_encoder": "image", "text_encoder": "text"}
_KEPT = {"name", "max_batch_size", "input", "output", "dynamic_batching"}
# TF32 would round what the export proved in float32; float16 graphs have nothing that it concerns.
_CUDA_OPTIONS = {"use_tf32": "0"}
# 1 is HEURISTIC. Every batch size is a new shape, and the default tries all algorithms anew for each. The backend takes
# it from the parameters alone, and overrides the accelerator's options by its default.
_ONNXRUNTIME_PARAMETERS = {"cudnn_conv_algo_search": "1"}


def encoder_config(
    config: ModelConfig,
    template: ModelConfig,
    spec: ServingSpec,
    settings: Settings,
    engines: Sequence[Mapping[str, Any]],
) -> ModelConfig:
    """`config` of an encoder of any runtime, turned to that of `settings`.

    Args:
        template: as checked in; for the Python backend.
        engines: under `tensorrt`, as the manifest records them.
    """
    made = ModelConfig()
    made.CopyFrom(config)
    for field, _ in config.ListFields():
        if field.name not in _KEPT:
            made.ClearField(field.name)
    made.dynamic_batching.max_queue_delay_microseconds = settings.queue_delay_us
    # The first sample is of one image, or of one text of the shortest bucket, under every runtime.
    made.model_warmup.append(config.model_warmup[0])
    made.model_warmup[0].name = template.model_warmup[0].name
    if settings.runtime == PYTHON:
        _python(made, template, spec, settings)
        return made
    _on_gpu(made, spec, settings)
    if settings.runtime == ONNXRUNTIME:
        _onnxruntime(made)
    else:
        _tensorrt(made, spec, settings, engines)
    return made


def _python(made: ModelConfig, template: ModelConfig, spec: ServingSpec, settings: Settings) -> None:
    made.backend = template.backend
    made.instance_group.MergeFrom(template.instance_group)
    made.parameters.MergeFrom(template.parameters)
    values = {**settings.own_queue, "threads": str(settings.threads)}
    if made.input[0].name == "input_ids":
        values |= {"vocab_size": str(spec.text.vocab_size), "context_length": str(spec.text.context_length)}
    for key, value in values.items():
        made.parameters[key].string_value = value


def _on_gpu(made: ModelConfig, spec: ServingSpec, settings: Settings) -> None:
    made.instance_group.add(count=settings.encoder_instances, kind=ModelInstanceGroup.KIND_GPU)
    made.optimization.input_pinned_memory.enable = settings.pinned_memory
    made.optimization.output_pinned_memory.enable = settings.pinned_memory
    first = made.model_warmup.pop()
    lengths = _lengths(made, spec)
    for length in lengths:
        # The largest batch too: it allocates what the model will ever need before the first caller waits for it.
        for batch in sorted({1, made.max_batch_size}):
            sample = made.model_warmup.add()
            sample.MergeFrom(first)
            sample.name = f"batch {batch}" if length is None else f"batch {batch}, {length} ids"
            sample.batch_size = batch
            if length is not None and length != lengths[0]:
                sample.inputs["input_ids"].zero_data = True
                sample.inputs["input_ids"].dims[:] = [length]


def _onnxruntime(made: ModelConfig) -> None:
    made.backend = "onnxruntime"
    made.default_model_filename = "model.onnx"
    accelerator = made.optimization.execution_accelerators.gpu_execution_accelerator.add(name="cuda")
    accelerator.parameters.update(_CUDA_OPTIONS)
    for key, value in _ONNXRUNTIME_PARAMETERS.items():
        made.parameters[key].string_value = value


def _tensorrt(made: ModelConfig, spec: ServingSpec, settings: Settings, engines: Sequence[Mapping[str, Any]]) -> None:
    """An engine per compute capability, and CUDA graphs.

    A graph is launched only for exactly its shape, so the text encoder has one for every batch and bucket.
    """
    _require_engines(made, engines)
    made.platform = "tensorrt_plan"
    for engine in engines:
        made.cc_model_filenames[engine["compute_capability"]] = Path(engine["file"]).name
    batches = graph_batches(settings.graph_batches, made.max_batch_size, made.name)
    made.optimization.cuda.graphs = bool(batches)
    for batch in batches:
        for length in _lengths(made, spec):
            graph = made.optimization.cuda.graph_spec.add(batch_size=batch)
            if length is not None:
                graph.input["input_ids"].dim[:] = [length]


def _lengths(made: ModelConfig, spec: ServingSpec) -> Sequence[int | None]:
    """Of the texts that an encoder is sent; of images there is one shape."""
    return spec.text.buckets if made.input[0].name == "input_ids" else (None,)


def _require_engines(made: ModelConfig, engines: Sequence[Mapping[str, Any]]) -> None:
    if not engines:
        raise EngineError(
            f"the runtime {TENSORRT} was asked for, and {made.name} has no engine; build it on the GPU that serves: "
            f"tritonclip engine build DIR --runtime {TENSORRT}"
        )
    for engine in engines:
        most = engine["profile"]["max"][0]
        if most < made.max_batch_size:
            raise EngineError(
                f"{made.name} is to serve batches of up to {made.max_batch_size}, and {engine['file']} takes {most}; "
                "give at most that, or set the batch under another runtime and build the engines again"
            )


def graph_batches(given: Sequence[int] | None, most: int, model: str) -> list[int]:
    """Batch sizes of `model` that get a CUDA graph: those `given`, or powers of two and the largest that is served.

    Raises:
        EngineError: one that the model does not serve.
    """
    batches = sorted(set(given if given is not None else [*(1 << power for power in range(most.bit_length())), most]))
    wrong = [batch for batch in batches if not 1 <= batch <= most]
    if wrong:
        raise EngineError(
            f"--graph-batches {wrong[0]} is set; {model} serves batches of 1 to {most}; give others, or `default`"
        )
    return batches
