"""The ONNX runner inside the encoder models."""

import queue
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
import clip_onnx
from clip_jobs import Job
from clip_onnx import REFUSALS, Encoder


@pytest.fixture(scope="module")
def doubling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph that doubles float32 [batch, length]."""
    tensor = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", "length"]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", tensor[:1], tensor[1:])
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def encode(encoder: Encoder, batch: np.ndarray) -> np.ndarray | Exception:
    answers: queue.Queue[np.ndarray | Exception] = queue.Queue()
    encoder.submit(Job(batch, answers.put))
    return answers.get(timeout=10)


@pytest.mark.parametrize("threads", [0, 1, 2, 3])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 11, 32])
def test_every_row_is_embedded_once_and_in_order(doubling: Path, rows: int, threads: int) -> None:
    batch = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    encoder = Encoder(doubling, threads=threads)
    assert np.array_equal(encode(encoder, batch), 2 * batch)
    encoder.close()


def test_what_the_graph_refuses_comes_back_as_the_answer(doubling: Path) -> None:
    encoder = Encoder(doubling)
    assert isinstance(encode(encoder, np.zeros((2, 2), np.int32)), REFUSALS)
    encoder.close()


def test_a_missing_graph_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tritonclip export"):
        Encoder(tmp_path / "model.onnx")


class Session:
    """ONNX Runtime as it is on a GPU machine: with a CUDA provider, which loads or does not."""

    loads: ClassVar[bool] = True
    opened: ClassVar[list[tuple[list[Any], int]]] = []
    batches: ClassVar[list[int]] = []
    falls_back: ClassVar[bool] = True

    def __init__(self, path: Path, options: Any, providers: list[Any]) -> None:
        names = [one if isinstance(one, str) else one[0] for one in providers]
        self.providers = names if self.loads else ["CPUExecutionProvider"]
        self.opened.append((providers, options.intra_op_num_threads))
        self.session = SESSION(path, options, providers=["CPUExecutionProvider"])

    def disable_fallback(self) -> None:
        """As onnxruntime's own, which else moves to the CPU when a kernel fails."""
        type(self).falls_back = False

    def get_providers(self) -> list[str]:
        return self.providers

    def get_inputs(self) -> Any:
        return self.session.get_inputs()

    def run(self, outputs: Any, inputs: dict[str, np.ndarray]) -> Any:
        self.batches.extend(map(len, inputs.values()))
        return self.session.run(outputs, inputs)


SESSION = clip_onnx.ort.InferenceSession


@pytest.fixture
def gpu_machine(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    monkeypatch.setattr(Session, "loads", True)
    monkeypatch.setattr(Session, "opened", [])
    monkeypatch.setattr(Session, "batches", [])
    monkeypatch.setattr(Session, "falls_back", True)
    monkeypatch.setattr(clip_onnx.ort, "InferenceSession", Session)
    monkeypatch.setattr(clip_onnx.ort, "preload_dlls", lambda: None)
    monkeypatch.setattr(clip_onnx.ort, "get_available_providers", lambda: [clip_onnx.CUDA, clip_onnx.CPU])
    return Session


def test_a_gpu_runs_one_session_in_full_float32(gpu_machine: type[Session], doubling: Path, capfd) -> None:
    Encoder(doubling, threads=2).close()
    (((cuda, options), cpu), _), *others = gpu_machine.opened
    assert (cuda, cpu, others) == (clip_onnx.CUDA, clip_onnx.CPU, [])
    assert options["use_tf32"] == "0"
    assert not gpu_machine.falls_back
    assert capfd.readouterr().err == f"{doubling} runs on CUDAExecutionProvider\n"


def test_a_gpu_takes_large_requests_in_slices(gpu_machine: type[Session], doubling: Path) -> None:
    most = clip_onnx.GPU_BATCH
    batch = np.arange((2 * most + 7) * 2, dtype=np.float32).reshape(-1, 2)
    encoder = Encoder(doubling, threads=2)
    assert np.array_equal(encode(encoder, batch), 2 * batch)
    encoder.close()
    assert gpu_machine.batches == [most, most, 7]


def test_a_gpu_that_cannot_be_used_is_told_of_and_the_cpu_runs(
    gpu_machine: type[Session], doubling: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr(gpu_machine, "loads", False)
    encoder = Encoder(doubling, threads=2)
    assert encode(encoder, np.ones((3, 2), np.float32)).sum() == 12
    encoder.close()
    warning, where = capfd.readouterr().err.splitlines()
    assert warning.startswith("WARNING: ")
    assert "could not load it" in warning
    assert where == f"{doubling} runs on CPUExecutionProvider"
    # The narrow session of the CPU's lanes does not try again.
    assert [providers[-1:] == providers for providers, _ in gpu_machine.opened] == [False, True]


def test_who_insists_on_the_gpu_gets_no_cpu(
    gpu_machine: type[Session], doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_machine, "loads", False)
    monkeypatch.setenv("TRITONCLIP_DEVICE", "cuda")
    with pytest.raises(RuntimeError, match="TRITONCLIP_DEVICE is cuda; .*could not load.*check the driver"):
        Encoder(doubling)
    monkeypatch.setattr(clip_onnx.ort, "get_available_providers", lambda: [clip_onnx.CPU])
    with pytest.raises(RuntimeError, match="no CUDA provider: install onnxruntime-gpu"):
        Encoder(doubling)


def test_who_wants_the_cpu_gets_no_gpu(
    gpu_machine: type[Session], doubling: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITONCLIP_DEVICE", "cpu")
    Encoder(doubling, threads=2).close()
    assert gpu_machine.opened == [([clip_onnx.CPU], 2), ([clip_onnx.CPU], 1)]


def test_a_fault_of_the_gpu_is_no_fault_of_the_input() -> None:
    words = "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700: an illegal memory access was encountered ; GPU=0"
    assert not clip_onnx.is_refusal(clip_onnx.Fail(words))
    assert clip_onnx.is_refusal(clip_onnx.Fail("indices element out of data bounds, idx=9 must be within [-4,3]"))
    assert not clip_onnx.is_refusal(RuntimeError("indices element out of data bounds"))


def test_an_unknown_device_is_refused(doubling: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONCLIP_DEVICE", "tpu")
    with pytest.raises(ValueError, match="'tpu'; allowed: auto, cpu, cuda"):
        Encoder(doubling)
