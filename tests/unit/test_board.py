"""What the models' processes tell each other and the supervisor, through files in memory."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "model_repository" / "image_encoder" / "1"))
import clip_board
from clip_board import Backlog, Board

# A model's process that tells a backlog of so many seconds until its input ends.
CHILD = """
import sys
sys.path.append(sys.argv[1])
from clip_board import Board
board = Board("encoder", "encoder_0")
board.set_backlog(float(sys.argv[2]))
print("told", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITONCLIP_RUN_DIR", str(tmp_path))
    monkeypatch.setattr(clip_board, "LOOK_S", 0.0)
    return tmp_path


def cells(path: Path) -> tuple[float, ...]:
    return struct.unpack("<8d", path.read_bytes())


def child(backlog_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(Path(clip_board.__file__).parent), str(backlog_s)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    return process


def test_a_line_that_the_log_has_no_room_for_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w")  # noqa: SIM115 (what closing it does is tested)
    monkeypatch.setattr(sys, "stderr", full)
    clip_board.say("a line")
    # The file still holds the line, and fails once more.
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_the_layout_is_that_of_the_contract(run_dir: Path) -> None:
    board = Board("encoder", "encoder_0")
    path = run_dir / "boards" / f"encoder.encoder_0.{os.getpid()}"
    first = cells(path)
    assert abs(first[0] - time.monotonic()) < 1.0
    assert first[1:] == (0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    before = time.monotonic()
    older = board.begin()
    newer = board.begin()
    board.end(newer)
    assert before <= cells(path)[1] <= time.monotonic()
    time.sleep(0.3)
    board.end(older)
    board.set_backlog(1.5)
    beat, busy_since, limit_s, backlog_s = cells(path)[:4]
    assert (busy_since, backlog_s) == (0.0, 1.5)
    assert 3.0 <= limit_s < 30.0
    assert beat > first[0]
    board.close()
    assert not path.exists()


def test_the_backlog_of_another_process_is_read_and_that_of_a_dead_one_is_not(run_dir: Path) -> None:
    backlog = Backlog("encoder")
    assert backlog.seconds() == 0.0
    first = child(2.5)
    assert backlog.seconds() == 2.5
    first.kill()
    first.communicate()
    assert backlog.seconds() == 0.0
    second = child(0.5)
    assert backlog.seconds() == 0.5
    # The one that took its place removed what it left.
    assert len(list((run_dir / "boards").iterdir())) == 1
    second.communicate()


def test_a_name_that_begins_alike_is_another_model(run_dir: Path) -> None:
    board = Board("encoder_b", "encoder_b_0")
    board.set_backlog(9.0)
    assert Backlog("encoder").seconds() == 0.0
    assert Backlog("encoder_b").seconds() == 9.0
    board.close()


def test_a_stopped_process_has_no_backlog(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board("encoder", "encoder_0")
    board.set_backlog(9.0)
    board._ended.set()
    monkeypatch.setattr(clip_board, "STALE_S", 0.0)
    assert Backlog("encoder").seconds() == 0.0
    board.close()


def test_without_a_folder_nothing_is_written_and_nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITONCLIP_RUN_DIR", raising=False)
    board = Board("encoder", "encoder_0")
    board.set_backlog(3.0)
    board.end(board.begin())
    assert Backlog("encoder").seconds() == 0.0
    assert list(tmp_path.iterdir()) == []
    board.close()


def test_reading_costs_next_to_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_board, "LOOK_S", 10.0)
    board, backlog = Board("encoder", "encoder_0"), Backlog("encoder")
    backlog.seconds()
    begun = time.perf_counter()
    for _ in range(1000):
        backlog.seconds()
    assert (time.perf_counter() - begun) / 1000 < 0.001
    board.close()
