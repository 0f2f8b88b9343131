"""Load for a served CLIP, from a checkout: `locust -f benchmarks/locustfile.py`, with all of locust's own options."""

from __future__ import annotations

# It brings the options and the hooks.
import tritonclip_bench.load.locustfile  # noqa: F401
from tritonclip_bench.load.users import TritonUser

__all__ = ["TritonUser"]
