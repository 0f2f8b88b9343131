"""Every name of TensorRT and pycuda that `engine/tensorrt_api.py` uses stands in their own published files.

What this proves: the name is one that the compiled bindings of TensorRT 10.16 and 11.4 register (a string of its own
in the module's data, or the end of one, as linkers share tails, that its documentation also has as a word), and that
pycuda's source binds. What it cannot prove: that the name belongs to the object that it is asked of, what arguments
it takes, or that the calls in their order build an engine. For that TensorRT's libraries and a GPU are needed.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tritonclip_export.engine import tensorrt_api

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "work" / "bindings"
BINDINGS = ("10.16.1.11", "11.4.0.106")
PYCUDA = "2026.1"
# Attributes of what is neither TensorRT nor pycuda; every other one has to be TensorRT's.
OF_PYTHON = {"append", "clear", "errors", "get", "items", "join", "pop", "shapes", "split", "steps", "is_file"}
OF_PYTHON |= {"getpid", "read_bytes", "write_bytes", "replace", "with_name", "shape", "nbytes", "name", "stderr"}
OF_NUMPY = {"empty", "float32", "ascontiguousarray", "copy"}
OF_OURS = {"machine", "build", "run", "_configure", "_trt", "_cuda", "_device", "_logger", "_used"}
OF_OURS |= {"load", "place", "wait", "result", "stream", "_engine", "_context", "_names", "_memory", "_embeddings"}
OF_OURS |= {"onnx", "profile", "timing_cache", "version_compatible", "workspace_gib", "input_name"}
# Stand in the module as the end of a longer string alone, and nowhere in its documentation: the weakest evidence here.
TAILS = {"INPUT"}
PYCUDA_NAMES = {"get_driver_version", "compute_capability", "Stream", "mem_alloc", "memcpy_htod_async"}
PYCUDA_NAMES |= {"memcpy_dtoh_async", "synchronize", "handle", "Error", "device", "autoprimaryctx", "driver"}


def attributes() -> set[str]:
    """Every attribute that the module reads, calls or sets, and every method by which TensorRT calls it back."""
    tree = ast.parse(Path(tensorrt_api.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.bases]
    called_back = {one.name for node in classes for one in node.body if isinstance(one, ast.FunctionDef)}
    keywords = {word.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for word in node.keywords}
    given = {"ignore_mismatch"} & keywords
    return (used | called_back | given) - {"__init__", "__version__"}


TENSORRT_NAMES = attributes() - OF_PYTHON - OF_NUMPY - OF_OURS - PYCUDA_NAMES


def fetch(requirement: str, *options: str) -> Path:
    """The file of a package, kept below work/; skips where it is not there and cannot be fetched."""
    name, version = requirement.split("==")
    pattern = f"{name.replace('-', '_')}-{version}*"
    if not list(CACHE.glob(pattern)):
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-q"]
        done = subprocess.run(
            [*command, *options, "--dest", str(CACHE), requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"{requirement} is not in {CACHE} and could not be fetched: {done.stderr.strip()[-200:]}")
    return next(CACHE.glob(pattern))


def wheel(version: str) -> Path:
    # The wheel of one Python stands for all: they are made from one source.
    platform = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:")
    return fetch(f"tensorrt-cu13-bindings=={version}", *platform)


class Module:
    """The strings of a compiled module, and the Python beside it."""

    def __init__(self, file: Path) -> None:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            compiled = next(name for name in names if name.endswith("/tensorrt.so"))
            content = archive.read(compiled)
            self.version = archive.read(next(name for name in names if name.endswith("bindings/__init__.py"))).decode()
        self.strings = set(re.findall(rb"(?<=\0)[\x20-\x7e]+(?=\0)", content))
        self.words = set(re.findall(rb"[A-Za-z_0-9]+", content))
        self.tails = b"\0".join(self.strings) + b"\0"

    def has(self, name: str) -> bool:
        wanted = name.encode()
        return wanted in self.strings or (wanted + b"\0" in self.tails and (wanted in self.words or name in TAILS))


@pytest.fixture(scope="module", params=BINDINGS)
def module(request: pytest.FixtureRequest) -> Module:
    return Module(wheel(request.param))


@pytest.mark.network
def test_the_bindings_have_every_name(module: Module) -> None:
    assert [name for name in sorted(TENSORRT_NAMES) if not module.has(name)] == []


@pytest.mark.network
def test_the_bindings_tell_their_version(module: Module) -> None:
    assert re.search(r'^__version__ = "1[01]\.', module.version, re.MULTILINE)


@pytest.mark.network
def test_a_name_that_was_removed_is_missed() -> None:
    """So that the look-up can fail: weak typing's flags are in 10 and gone from 11."""
    old, new = (Module(wheel(version)) for version in BINDINGS)
    for name in ("FP16", "EXPLICIT_BATCH", "OBEY_PRECISION_CONSTRAINTS"):
        assert old.has(name), name
        assert not new.has(name), name
    assert not old.has("build_engine_from_nothing")


@pytest.mark.network
def test_pycuda_binds_the_names() -> None:
    with tarfile.open(fetch(f"pycuda=={PYCUDA}", "--no-binary", ":all:", "--no-build-isolation")) as archive:
        sources = [one for one in archive.getmembers() if one.name.endswith((".cpp", ".hpp", ".py")) and one.isfile()]
        text = "\n".join(archive.extractfile(one).read().decode(errors="replace") for one in sources)
    bound = set(re.findall(r'(?:def|add_property|DECLARE_EXC|class_<[^>]*>)\s*\(\s*"?(\w+)', text))
    bound |= set(re.findall(r"DEF_SIMPLE_METHOD\((\w+)\)", text)) | set(re.findall(r'\("(\w+)", py::init', text))
    files = {Path(one.name).stem for one in sources if "/pycuda/" in one.name}
    modules = files | set(re.findall(r"^(\w+) = context\.get_device\(\)", text, re.MULTILINE))
    assert PYCUDA_NAMES - bound - modules == set()


def test_nothing_else_in_the_project_imports_tensorrt_or_pycuda() -> None:
    importing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "export").rglob("*.py")
        if re.search(r"^\s*(import|from) (tensorrt|pycuda)\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert importing == ["export/tritonclip_export/engine/tensorrt_api.py"]


def test_the_list_of_names_is_what_the_module_uses() -> None:
    assert {"STRONGLY_TYPED", "parse_from_file", "build_serialized_network", "execute_async_v3"} <= TENSORRT_NAMES
    assert PYCUDA_NAMES <= attributes() | {"driver", "autoprimaryctx"}
