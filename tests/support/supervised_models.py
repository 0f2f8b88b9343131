"""A repository that is loaded in a second, whose models die, hang and eat memory when they are told to.

`embed_text` is an ensemble of `tower`, which answers out of a thread of its own and has a board, and of `finish`;
`embed_image` is a model of its own. A text says what the tower does with it: `sleep SECONDS`, `silent` (the heart stops
beating), `eat MEGABYTES`, or anything else: it is embedded as its length and 1.
"""

from __future__ import annotations

from pathlib import Path

from tritonclip_export.repository.manifest import write_manifest

_CONFIG = """
name: "{name}"
backend: "python"
max_batch_size: 8
input [ {{ name: "{given}" data_type: {kind} dims: [ {width} ] }} ]
output [ {{ name: "{made}" data_type: TYPE_FP32 dims: [ 2 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
"""
_ENSEMBLE = """
name: "embed_text"
platform: "ensemble"
max_batch_size: 8
input [ { name: "text" data_type: TYPE_STRING dims: [ 1 ] } ]
output [ { name: "embedding" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "tower" model_version: -1
      input_map { key: "text" value: "text" } output_map { key: "rows" value: "rows" }
    },
    {
      model_name: "finish" model_version: -1
      input_map { key: "rows" value: "rows" } output_map { key: "embedding" value: "embedding" }
    }
  ]
}
"""
_TOWER = """
import os
import struct
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

kept = []


class TritonPythonModel:
    def initialize(self, args):
        name = f"{args['model_name']}.{args['model_instance_name']}.{os.getpid()}"
        self.path = os.path.join(os.environ["TRITONCLIP_RUN_DIR"], "boards", name)
        self.busy, self.silent = 0.0, False
        self.tell()
        threading.Thread(target=self.beat, daemon=True).start()

    def beat(self):
        while not self.silent:
            self.tell()
            time.sleep(0.05)

    def tell(self):
        board = struct.pack("<8d", time.monotonic(), self.busy, 60.0, 0, 0, 0, 0, 0)
        with open(self.path, "r+b" if os.path.exists(self.path) else "wb") as file:
            file.write(board)

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
            threading.Thread(target=self.answer, args=(request.get_response_sender(), text), daemon=True).start()

    def answer(self, sender, text):
        self.busy = time.monotonic()
        what, _, much = text[0, 0].decode().partition(" ")
        if what == "sleep":
            time.sleep(float(much))
        elif what == "silent":
            self.silent = True
        elif what == "eat":
            # In pieces, so that the heart beats meanwhile.
            for _ in range(int(much) // 10):
                kept.append(b"x" * 10_000_000)
                time.sleep(0.005)
        rows = pb_utils.Tensor("rows", np.array([[len(one), 1] for one in text[:, 0]], dtype=np.float32))
        self.busy = 0.0
        sender.send(
            pb_utils.InferenceResponse([rows]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        )
"""
_SIMPLE = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        rows = pb_utils.get_input_tensor_by_name(request, "{given}").as_numpy()
        embedding = np.array({value}, dtype=np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("embedding", embedding)])
"""


def write_supervised_repository(root: Path) -> Path:
    """Write it below `root`, and return `root`."""
    _write(root, "tower", ("text", "TYPE_STRING", 1), "rows", _TOWER)
    _write(root, "finish", ("rows", "TYPE_FP32", 2), "embedding", _SIMPLE.format(given="rows", value="rows"))
    value = "[[len(one), 1] for one in rows[:, 0]]"
    _write(root, "embed_image", ("image", "TYPE_STRING", 1), "embedding", _SIMPLE.format(given="image", value=value))
    (root / "embed_text" / "1").mkdir(parents=True)
    (root / "embed_text" / "1" / "README").write_text("an ensemble\n")
    (root / "embed_text" / "config.pbtxt").write_text(_ENSEMBLE)
    write_manifest(root, {"spec": {"name": "tiny", "fingerprint": "0123456789abcdef"}})
    return root


def _write(root: Path, name: str, given: tuple[str, str, int], made: str, code: str) -> None:
    (root / name / "1").mkdir(parents=True)
    config = _CONFIG.format(name=name, given=given[0], kind=given[1], width=given[2], made=made)
    (root / name / "config.pbtxt").write_text(config)
    (root / name / "1" / "model.py").write_text(code)
