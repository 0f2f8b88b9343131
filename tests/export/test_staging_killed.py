"""What a killed export or change leaves beside a repository, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiny_clip import write_tiny_checkpoint
from tritonclip_client.main import main
from tritonclip_export.errors import RepositoryError
from tritonclip_export.repository.manifest import verify
from tritonclip_export.repository.staging import claimed, sweep, unique

SUPPORT = Path(__file__).parents[1] / "support"


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture
def exporting(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A real export that has begun to write beside OUT."""
    source = write_tiny_checkpoint(tmp_path / "tiny")
    out = tmp_path / "somewhere" / "out"
    command = [sys.executable, "-m", "tritonclip_client.main", "export", str(source), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (out.parent.is_dir() and hidden(out.parent)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process, out
    process.kill()
    process.wait()


def test_what_a_killed_export_left_goes_with_the_next_and_no_living_one_does(exporting, capsys) -> None:
    process, out = exporting
    process.send_signal(signal.SIGSTOP)
    (staging,) = hidden(out.parent)
    sweep(out)
    assert hidden(out.parent) == [staging]
    process.kill()
    process.wait()
    assert hidden(out.parent) == [staging]
    # It fails for its own reason, and has swept before.
    assert main(["export", "no-such-architecture", str(out)]) == 2
    assert "no-such-architecture" in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("what", [pytest.param("dali", marks=pytest.mark.slow), "folders", "export"])
def test_a_change_that_is_killed_at_any_step_is_undone_or_done(what: str, repository: Path) -> None:
    command = [sys.executable, str(SUPPORT / "killed_change.py"), str(repository), what]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(steps) >= 3
    assert [step["killed"] for step in steps] == [True] * (len(steps) - 1) + [False]
    assert any(not step["passes"] for step in steps)
    for step in steps:
        assert step["left"] > 0 or not step["killed"]
        assert step["passes_again"]
        assert step["undone"] is step["killed"]
        assert step["beside"] == []
        assert step["empty"] == []
        assert "already holds a model repository" in step["refusal"]


def test_looking_undoes_and_says_so(repository: Path, capsys) -> None:
    """`check` and `serve` name the command; settings that are only looked at come from what was there before."""
    from tritonclip_export.repository.staging import note

    staging = repository.parent / f".repository.settings-{unique()}"
    (staging / "old" / "clip").mkdir(parents=True)
    (staging / "manifest.json").write_text("{}")
    note(staging, repository, ["clip/config.pbtxt"])
    (repository / "clip" / "config.pbtxt").rename(staging / "old" / "clip" / "config.pbtxt")
    with pytest.raises(RepositoryError, match="cut short; undo it with: tritonclip configure"):
        verify(repository)
    assert main(["configure", str(repository)]) == 0
    assert f"note: a change of {repository} was killed halfway, and is undone" in capsys.readouterr().err
    verify(repository)
    assert hidden(repository.parent) == []


def test_a_repository_that_came_since_is_left_alone(repository: Path) -> None:
    """Somebody copied another one there by hand: its files are not those that the killed change took."""
    from tritonclip_export.repository.staging import note

    staging = repository.parent / f".repository.settings-{unique()}"
    (staging / "old" / "clip").mkdir(parents=True)
    (staging / "manifest.json").write_text("{}")
    (staging / "old" / "clip" / "config.pbtxt").write_text("of another repository")
    note(staging, repository, ["clip/config.pbtxt"])
    manifest = repository / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    sweep(repository)
    verify(repository)
    assert hidden(repository.parent) == []


def test_what_others_keep_there_stays(tmp_path: Path) -> None:
    names = [".out.old-stuff", ".out.partial-7", ".out.backup-1-0123abcd", ".other.partial-1-0123abcd", "out.partial-1"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.old-1-0123abcd").symlink_to(tmp_path / ".out.old-stuff")
    (tmp_path / ".out.old-2-0123abcd").write_text("a file")
    before = sorted(path.name for path in tmp_path.iterdir())
    sweep(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_was_swept_while_it_was_made_is_made_again(tmp_path: Path, monkeypatch) -> None:
    """Between the folder and its lock there is a moment in which it looks dead."""
    real, swept = os.open, []

    def sweep_first(path, flags, *mode, **of_folder):
        if not swept and Path(path).name.startswith(".out."):
            swept.append(path)
            sweep(tmp_path / "out")
        return real(path, flags, *mode, **of_folder)

    monkeypatch.setattr(os, "open", sweep_first)
    with claimed(tmp_path / f".out.partial-{unique()}") as folder:
        assert swept
        assert folder.is_dir()
        sweep(tmp_path / "out")
        assert folder.is_dir()
    assert hidden(tmp_path) == []
