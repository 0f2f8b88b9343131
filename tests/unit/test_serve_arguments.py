"""The flags that `tritonclip serve` gives to tritonserver."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tritonclip_serve.arguments import command_line
from tritonclip_serve.die_with_parent import PLACEHOLDER
from tritonclip_serve.edge.endpoints import Endpoints
from tritonclip_serve.installation import Installation

FLAG = "--backend-config=tensorrt,version-compatible=true"


def flags(repository: Path, *, runtime: str = "onnxruntime-python", version_compatible: bool = False) -> list[str]:
    built = {"file": "f", "gpu": "g", "compute_capability": "9.0", "tensorrt": "10.16.1"}
    engines = [{**built, "options": {"version_compatible": one}} for one in (False, version_compatible)]
    content = {"format": 1, "spec": {"runtime": runtime}, "files": {}}
    content["engines"] = {"image_encoder": engines[:1], "text_encoder": engines[1:]}
    (repository / "manifest.json").write_text(json.dumps(content))
    installation = Installation(Path("tritonserver"), "a tritonserver", ("--of-this-installation",))
    return command_line(installation, repository, Endpoints("127.0.0.1", 1, 2, 3), "prefix-")


@pytest.mark.parametrize(
    ("runtime", "version_compatible", "given"),
    [("tensorrt", True, True), ("tensorrt", False, False), ("onnxruntime-python", True, False)],
)
def test_engines_for_newer_releases_are_let_in(tmp_path, runtime, version_compatible, given):
    assert (FLAG in flags(tmp_path, runtime=runtime, version_compatible=version_compatible)) is given


def test_callers_cannot_control_models_logs_traces_or_shared_memory(tmp_path):
    rules = {word.partition("=")[0]: word.partition("=")[2] for word in flags(tmp_path) if "restricted" in word}
    assert set(rules) == {"--grpc-restricted-protocol", "--http-restricted-api"}
    for rule in rules.values():
        names, _, key = rule.partition(":")
        assert set(names.split(",")) == {"model-repository", "shared-memory", "logging", "trace"}
        # The key itself is filled in by the launcher, out of its environment.
        assert key == f"tritonclip={PLACEHOLDER}"


def test_the_header_that_names_a_caller_reaches_the_models_and_no_other_does(tmp_path):
    patterns = dict(word.split("=", 1) for word in flags(tmp_path) if "header-forward-pattern" in word)
    assert set(patterns) == {"--grpc-header-forward-pattern", "--http-header-forward-pattern"}
    for pattern in patterns.values():
        assert re.search(pattern, "Tritonclip-Caller")
        assert not re.search(pattern, "x-tritonclip-caller")
        assert not re.search(pattern, "authorization")


def test_the_installations_own_flags_come_after_the_common_ones(tmp_path):
    assert "--of-this-installation" in flags(tmp_path)[-1:]
