"""`text` in, the same out as `gated_text`; the other input only has to exist, which orders two steps."""

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Copies BYTES [M, 1]."""

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        text = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("gated_text", text)])
