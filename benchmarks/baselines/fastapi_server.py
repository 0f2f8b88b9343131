"""What many write first: open_clip in PyTorch behind FastAPI, in one process.

    python benchmarks/baselines/fastapi_server.py CHECKPOINT --port 8010

Images are decoded by Pillow and prepared by open_clip's own transform in a pool of as many threads as cores, texts by
open_clip's own tokenizer. One forward runs at a time and has all cores: several at once would fight over them.
With `--max-batch N` requests that wait while the model is busy are joined to at most N items; the default joins none.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Response, UploadFile
from PIL import Image
from pydantic import BaseModel

# Not from open_clip itself, which does not import beside a CPU build of torch.
from tritonclip_export.frameworks import open_clip, torch

CORES = len(os.sched_getaffinity(0))
Batch = torch.Tensor


class Texts(BaseModel):
    """The body of a request for texts."""

    texts: list[str]


class Batcher:
    """Runs one batch after the other, and joins what waits meanwhile.

    Args:
        run: inputs [N, ...] to embeddings [N, D], in `executor`.
        max_batch: items that requests are joined to; a request that is larger by itself runs alone.
    """

    def __init__(self, run: Callable[[Batch], Batch], executor: ThreadPoolExecutor, max_batch: int) -> None:
        self._run = run
        self._executor = executor
        self._max_batch = max_batch
        self._waiting: asyncio.Queue[tuple[Batch, asyncio.Future[Batch]]] = asyncio.Queue()

    async def __call__(self, inputs: Batch) -> Batch:
        """The embeddings of `inputs`."""
        answer: asyncio.Future[Batch] = asyncio.get_running_loop().create_future()
        await self._waiting.put((inputs, answer))
        return await answer

    async def work(self) -> None:
        """Answer for ever."""
        loop = asyncio.get_running_loop()
        held = None
        while True:
            taken = [held or await self._waiting.get()]
            held = None
            size = len(taken[0][0])
            while not self._waiting.empty():
                held = self._waiting.get_nowait()
                size += len(held[0])
                if size > self._max_batch:
                    break
                taken.append(held)
                held = None
            inputs, answers = zip(*taken, strict=True)
            try:
                embeddings = await loop.run_in_executor(self._executor, self._run, torch.cat(inputs))
                for answer, part in zip(answers, embeddings.split([len(one) for one in inputs]), strict=True):
                    if not answer.done():
                        answer.set_result(part)
            except Exception as error:
                for answer in answers:
                    if not answer.done():
                        answer.set_exception(error)


def make_app(checkpoint: Path, max_batch: int) -> FastAPI:
    """The application with the model of an open_clip directory."""
    torch.set_num_threads(CORES)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    model.eval()
    preparing, computing = ThreadPoolExecutor(CORES), ThreadPoolExecutor(1)

    def normalized(encode: Callable[[Batch], Batch]) -> Callable[[Batch], Batch]:
        def run(inputs: Batch) -> Batch:
            with torch.inference_mode():
                return torch.nn.functional.normalize(encode(inputs), dim=-1)

        return run

    def prepare(encoded: bytes) -> Batch:
        prepared: Batch = transform(Image.open(io.BytesIO(encoded)))
        return prepared

    images = Batcher(normalized(model.encode_image), computing, max_batch)
    texts = Batcher(normalized(model.encode_text), computing, max_batch)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        workers = [asyncio.create_task(batcher.work()) for batcher in (images, texts)]
        yield
        for worker in workers:
            worker.cancel()

    async def embed_images(files: list[UploadFile]) -> Response:
        loop = asyncio.get_running_loop()
        encoded = [await file.read() for file in files]
        prepared = await asyncio.gather(*(loop.run_in_executor(preparing, prepare, one) for one in encoded))
        return _answer(await images(torch.stack(prepared)))

    async def embed_texts(body: Texts) -> Response:
        ids = await asyncio.get_running_loop().run_in_executor(preparing, tokenizer, body.texts)
        return _answer(await texts(ids))

    app = FastAPI(lifespan=lifespan)
    app.add_api_route("/embed/images", embed_images, methods=["POST"])
    app.add_api_route("/embed/texts", embed_texts, methods=["POST"])
    return app


def _answer(embeddings: Batch) -> Response:
    """JSON as OpenAI's embeddings in base64, which costs both ends less than decimal numbers."""
    data = [{"embedding": base64.b64encode(row.tobytes()).decode()} for row in embeddings.numpy()]
    return Response(orjson.dumps({"data": data}), media_type="application/json")


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(description="open_clip in PyTorch behind FastAPI.")
    parser.add_argument("checkpoint", type=Path, help="a directory with open_clip_config.json and weights")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=1, help="items that waiting requests are joined to (1)")
    args = parser.parse_args()
    server: dict[str, Any] = {"loop": "uvloop", "http": "httptools", "log_level": "warning", "access_log": False}
    uvicorn.run(make_app(args.checkpoint, args.max_batch), host="127.0.0.1", port=args.port, **server)


if __name__ == "__main__":
    main()
