"""The same question through the blocking and through the asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tritonclip_client import AsyncClipClient, ClipClient


def ask_blocking(address: str, question: Callable[[Any], Any], **options: Any) -> Any:
    with ClipClient(address, **options) as client:
        return question(client)


def ask_asyncio(address: str, question: Callable[[Any], Any], **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncClipClient(address, **options) as client:
            return await question(client)

    return asyncio.run(main())


both_clients = pytest.mark.parametrize("ask", [ask_blocking, ask_asyncio], ids=["blocking", "asyncio"])
