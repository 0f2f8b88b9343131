"""What README and docs/ name exists: every file they point to, every option of the commands they show."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tritonclip_client.main import build_parser

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
COMMANDS = [
    line.strip().removeprefix("$ ")
    for page in PAGES
    for line in page.read_text(encoding="utf-8").splitlines()
    if line.strip().startswith("$ tritonclip ")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_of_this_repository_exist(page):
    paths = re.findall(
        r"`((?:benchmarks|deploy|docs|tests|export|model_repository)/[\w./-]+)`", page.read_text("utf-8")
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    words = shlex.split(command)[1:]
    args = build_parser(words).parse_args(words)
    assert args.command == words[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ |^    )make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE))
    assert named <= targets


def test_the_site_is_built_without_a_warning_and_has_both_references(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert run.returncode == 0, run.stderr
    assert "embed_images" in (tmp_path / "reference" / "client" / "index.html").read_text("utf-8")
    commands = (tmp_path / "reference" / "commands" / "index.html").read_text("utf-8")
    assert all(option in commands for option in ("tritonclip bench slo", "--probe-images", "--restart-limit"))
