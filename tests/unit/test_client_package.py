"""What importing the client costs, and what it offers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tritonclip_client

FORBIDDEN = ("torch", "open_clip", "onnx", "transformers", "peft", "onnxruntime")
# Beside those of grpc, numpy and tritonclient. Counted, not timed, so that it says the same on every machine.
MOST_MODULES = 40


def python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    "program",
    ["import tritonclip_client", "from tritonclip_client import *", "import tritonclip_client.commands.embed"],
)
def test_it_never_imports_a_training_framework(program):
    loaded = python(f"{program}\nimport sys\nprint([m for m in {FORBIDDEN} if m in sys.modules])")

    assert loaded == "[]"


def test_pillow_waits_until_pixels_come():
    assert python("from tritonclip_client import ClipClient\nimport sys\nprint('PIL' in sys.modules)") == "False"


def test_the_bare_import_loads_nothing_heavy():
    loaded = python("import tritonclip_client, sys\nprint([m for m in ('numpy', 'grpc') if m in sys.modules])")

    assert loaded == "[]"


def test_the_import_fits_its_budget():
    added = python(
        "import grpc, numpy, sys, tritonclient.grpc\n"
        "before = set(sys.modules)\n"
        "from tritonclip_client import ClipClient\n"
        "print(*sys.modules.keys() - before)"
    ).split()

    assert "tritonclip_client.client" in added
    assert len(added) <= MOST_MODULES


def test_all_names_exist_and_are_sorted():
    assert {name for name in tritonclip_client.__all__ if getattr(tritonclip_client, name) is None} == set()
    assert sorted(tritonclip_client.__all__, key=lambda name: (not name.isupper(), name)) == tritonclip_client.__all__
    assert set(tritonclip_client._HOME) == set(tritonclip_client.__all__)
    assert set(tritonclip_client.__all__) <= set(dir(tritonclip_client))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'ClipServer'"):
        tritonclip_client.ClipServer  # noqa: B018
