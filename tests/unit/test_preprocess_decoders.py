"""Decoder processes: the same pixels, and an image that takes too much, or crashes its decoder, fails alone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import bombs
from sample_images import IMAGES

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"))

import clip_decoders
from clip_decoders import Decoder, DecoderError
from clip_fair import OverloadError
from clip_preprocess import ImageError, preprocess, settings_from

MODEL = Path(clip_decoders.__file__).parent
PARAMETERS = {
    "image_height": "64",
    "image_width": "64",
    "resize_mode": "shortest",
    "interpolation": "bicubic",
    "fill_color": "0,0,0",
    "max_pixels": "89478485",
    "max_bytes": str(1 << 25),
    # A quarter of the default, so that the tests take a quarter of the time.
    "image_seconds": "0.5",
}
SETTINGS = settings_from(PARAMETERS)
# Of processor time beyond the limit: a tick of the kernel's, and what a process takes before its image.
TOLERANCE_S = 0.25
GOOD = IMAGES["jpeg 4:2:0"]()
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    made = Decoder(PARAMETERS)
    yield made
    made.close()


def pid(decoder: Decoder) -> int:
    decoder._await_ready()
    return decoder._process.pid


def cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def ended_s() -> float:
    """Of all child processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measured(decoder: Decoder, encoded: bytes) -> tuple[str, float]:
    """The refusal, or "", and the seconds of a processor that it took."""
    first, said = pid(decoder), ""
    before, ended = cpu_s(first), ended_s()
    try:
        assert decoder.decode(encoded).shape == (64, 64, 3)
    except ImageError as error:
        said = str(error)
    same = decoder._process.pid == first
    return said, (cpu_s(first) if same else ended_s() - ended) - before


@pytest.mark.parametrize("kind", IMAGES)
def test_the_pixels_are_those_of_the_model_itself(decoder: Decoder, kind: str) -> None:
    encoded = IMAGES[kind]()
    assert np.array_equal(decoder.decode(encoded), preprocess(encoded, SETTINGS))


@pytest.mark.parametrize("kind", bombs.BOMBS)
def test_no_image_takes_more_than_it_may_and_the_next_one_is_served(decoder: Decoder, kind: str) -> None:
    said, seconds = measured(decoder, bombs.BOMBS[kind]())
    assert seconds < SETTINGS.cpu_seconds + TOLERANCE_S
    assert said == "" or (said.count("; ") >= 2 and "cut off" not in said), said
    assert np.array_equal(decoder.decode(GOOD), preprocess(GOOD, SETTINGS))


@pytest.mark.slow
def test_bombs_that_are_slowly_made(decoder: Decoder) -> None:
    for make in bombs.SLOWLY_MADE.values():
        said, seconds = measured(decoder, make())
        assert seconds < SETTINGS.cpu_seconds + TOLERANCE_S
        assert "more than 0.5 s" in said or "more than 500 MB" in said


def test_the_time_limit_is_named_with_its_option(decoder: Decoder) -> None:
    said, _ = measured(decoder, bombs.bmp_rle(bombs.SIDE, bombs.SIDE))
    assert "took more than 0.5 s of a processor to decode; at most 0.5 s are allowed; send a smaller" in said
    assert said.endswith("raise --image-seconds of `tritonclip configure`")


def test_the_memory_limit_is_named_with_its_option_and_holds(decoder: Decoder) -> None:
    process = pid(decoder)
    base = memory_mb(process, "VmHWM")
    said, _ = measured(decoder, bombs.tiff_tile(26_000))
    assert "needs more than 500 MB of memory to decode; at most 500 MB are allowed; send a smaller" in said
    assert said.endswith("raise --image-megabytes of `tritonclip configure`")
    assert memory_mb(process, "VmHWM") < base + 500


def memory_mb(process: int, name: str) -> float:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(name))


@pytest.fixture
def slow(decoder: Decoder) -> Iterator[Callable[[int], None]]:
    """Sends a signal to the process once it is at work."""
    threads = []

    def send(number: int) -> None:
        process = pid(decoder)
        before = cpu_s(process)

        def wait_and_send() -> None:
            deadline = time.monotonic() + 20
            while cpu_s(process) < before + 0.05 and time.monotonic() < deadline:
                time.sleep(0.001)
            os.kill(process, number)

        threads.append(threading.Thread(target=wait_and_send))
        threads[-1].start()

    yield send
    for thread in threads:
        thread.join()


WORK = bombs.png_text(60)


def test_a_crash_fails_its_image_alone(decoder: Decoder, slow: Callable[[int], None]) -> None:
    slow(signal.SIGSEGV)
    with pytest.raises(ImageError, match=r"its decoder crashed \(SIGSEGV\); send it in another format"):
        decoder.decode(WORK)
    assert np.array_equal(decoder.decode(GOOD), preprocess(GOOD, SETTINGS))


def test_an_image_whose_process_somebody_kills_is_decoded_by_the_next(
    decoder: Decoder, slow: Callable[[int], None]
) -> None:
    before = decoder.ended
    slow(signal.SIGKILL)
    assert np.array_equal(decoder.decode(WORK), preprocess(WORK, SETTINGS))
    assert decoder.ended == before + 1


def test_a_process_that_was_killed_while_idle_is_not_noticed(decoder: Decoder) -> None:
    os.kill(pid(decoder), signal.SIGKILL)
    assert np.array_equal(decoder.decode(GOOD), preprocess(GOOD, SETTINGS))


def test_a_stopped_process_is_replaced(
    decoder: Decoder, slow: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_decoders, "PATIENCE", 4.0)
    process = pid(decoder)
    slow(signal.SIGSTOP)
    with pytest.raises(OverloadError, match=r"^overloaded: an image was not decoded within 2 s; retry in 1.0 s$"):
        decoder.decode(WORK)
    assert not Path(f"/proc/{process}").exists()
    assert np.array_equal(decoder.decode(GOOD), preprocess(GOOD, SETTINGS))


def test_a_process_that_cannot_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_decoders, "_PROGRAM", MODEL / "absent.py")
    broken = Decoder(PARAMETERS)
    try:
        with pytest.raises(DecoderError, match=r"did not start \(status 2\); see the server's log"):
            broken.decode(GOOD)
    finally:
        broken.close()


def test_it_ends_with_its_model_even_while_it_works() -> None:
    program = (
        f"import sys, threading; sys.path[:0] = [{str(MODEL)!r}, {str(Path(bombs.__file__).parent)!r}]\n"
        f"import bombs; from clip_decoders import Decoder\n"
        f"made = Decoder({PARAMETERS | {'image_seconds': '30'}!r}); made._await_ready()\n"
        "threading.Thread(target=made.decode, args=(bombs.bmp_rle(9400, 9400),), daemon=True).start()\n"
        "print(made._process.pid, flush=True); threading.Event().wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        process = int(parent.stdout.readline())
        assert Path(f"/proc/{process}").exists()
        parent.kill()
    deadline = time.monotonic() + 5
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(process)


def is_running(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def test_a_process_says_when_it_is_ready() -> None:
    made = Decoder(PARAMETERS, lazy=True)
    try:
        assert made._process is None
        assert not made.is_ready()
        deadline = time.monotonic() + 30
        while not made.is_ready() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert made.is_ready()
        assert np.array_equal(made.decode(GOOD), preprocess(GOOD, SETTINGS))
    finally:
        made.close()


def test_niceness_is_that_of_the_process() -> None:
    made = Decoder(PARAMETERS, niceness=5)
    try:
        assert os.getpriority(os.PRIO_PROCESS, pid(made)) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
    finally:
        made.close()
