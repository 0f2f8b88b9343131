"""The files that make containers, as far as they can be proven without Docker: names, paths, ports, commands, extras.

What this cannot prove: that NVIDIA's images hold what the Dockerfiles take for granted, and that they build.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tritonclip_client.main import build_parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
SETTINGS = dict(line.split("=", 1) for line in (DEPLOY / ".env").read_text().splitlines() if re.match(r"\w+=", line))


def substituted(value: Any) -> Any:
    """As compose fills in a parsed file, with the settings of .env and nothing else in the environment."""
    if isinstance(value, dict):
        return {key: substituted(one) for key, one in value.items()}
    if isinstance(value, list):
        return [substituted(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda match: SETTINGS.get(match[1], match[2]), value)
    return value


COMPOSE = substituted(yaml.safe_load((DEPLOY / "compose.yaml").read_text()))
SERVICES = COMPOSE["services"]
SERVERS = ("server", "server-cpu")


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of every line that is no comment, continuations joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def arguments(dockerfile: Path, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(dockerfile) if name == instruction]


def command_lines() -> list[tuple[str, list[str]]]:
    """(where, words) of everything that containers run, except for what their builds run."""
    found = []
    for dockerfile in DOCKERFILES:
        entry = json.loads(next(iter(arguments(dockerfile, "ENTRYPOINT")), "[]"))
        found += [(dockerfile.name, entry + json.loads(rest)) for rest in arguments(dockerfile, "CMD")]
        for check in arguments(dockerfile, "HEALTHCHECK"):
            found.append((f"{dockerfile.name} health", json.loads(check.partition("CMD ")[2])))
    for name, service in SERVICES.items():
        words = service["command"]
        entry = json.loads(
            next(iter(arguments(DEPLOY / Path(service["build"]["dockerfile"]).name, "ENTRYPOINT")), "[]")
        )
        # The shell makes way for the last of them.
        parts = [part.strip().removeprefix("exec ") for part in words[2].split("||")] if words[0] == "sh" else []
        lines = [shlex.split(part) for part in parts] or [entry + words]
        found += [(name, line) for line in lines]
        if "healthcheck" in service:
            assert service["healthcheck"]["test"][0] == "CMD"
            found.append((f"{name} health", service["healthcheck"]["test"][1:]))
    return found


COMMANDS = command_lines()
OURS = [(where, words) for where, words in COMMANDS if words[0] == "tritonclip"]


def parsed(words: list[str]):
    return build_parser(words[1:]).parse_args(words[1:])


@pytest.mark.parametrize(("where", "words"), OURS, ids=[where for where, _ in OURS])
def test_every_command_is_one_that_tritonclip_takes(where: str, words: list[str]) -> None:
    assert parsed(words).command == words[1]


def test_whatever_else_is_run_is_a_module_of_ours() -> None:
    others = [words for _, words in COMMANDS if words[0] != "tritonclip"]
    assert [words[:3] for words in others] == [["python3", "-m", "tritonclip_export.local_gpu"]]
    assert len(OURS) == 3 + 1 + len(SERVICES) + len(SERVERS)


def test_the_release_stands_in_one_place() -> None:
    release = SETTINGS["RELEASE"]
    assert re.fullmatch(r"2\d\.\d\d", release)
    files = [*DOCKERFILES, DEPLOY / "compose.yaml", DEPLOY / ".env"]
    assert [path.name for path in files if release in path.read_text()] == [".env"]
    bases = [arguments(DEPLOY / f"Dockerfile.{name}", "FROM") for name in ("server", "builder")]
    assert bases == [["nvcr.io/nvidia/tritonserver:${RELEASE}-py3"], ["nvcr.io/nvidia/tensorrt:${RELEASE}-py3"]]
    assert f"with release {release}" in (ROOT / "docs" / "deployment.md").read_text()
    for name in ("build-engines", *SERVERS):
        assert SERVICES[name]["build"]["args"]["RELEASE"] == release
        assert SERVICES[name]["image"].endswith(f":{release}")


def test_every_setting_is_used_and_every_used_one_is_set() -> None:
    used = re.findall(r"\$\{(\w+)(:-)?", (DEPLOY / "compose.yaml").read_text())
    assert {name for name, default in used if not default} == set(SETTINGS)


def test_ports_and_paths_agree() -> None:
    exposed = {int(port) for port in arguments(DEPLOY / "Dockerfile.server", "EXPOSE")[0].split()}
    for name in SERVERS:
        serve = parsed(SERVICES[name]["command"])
        published = [port.split(":") for port in SERVICES[name]["ports"]]
        assert {serve.grpc_port, serve.metrics_port} == exposed
        assert (serve.insecure, serve.http) == (True, False)
        assert {int(inside) for _, _, inside in published} == exposed
        assert {host for host, _, _ in published} == {"127.0.0.1"}
        assert [parsed(words).address for where, words in OURS if where == f"{name} health"] == ["127.0.0.1:8001"]
        assert (serve.host, serve.server, serve.show_log) == ("0.0.0.0", "path", True)
        assert str(serve.repository) == "/models/repository"
        assert SERVICES[name]["volumes"] == ["../work:/models:ro"]
        alias, _, port = parsed(["tritonclip", *SERVICES["load-test"]["command"]]).address.partition(":")
        assert alias in SERVICES[name]["networks"]["default"]["aliases"]
        assert int(port) == serve.grpc_port


def test_engines_are_built_where_the_server_reads() -> None:
    build = next(parsed(words) for where, words in OURS if where == "build-engines")
    assert build.repository == parsed(SERVICES["server"]["command"]).repository
    # The staging folder of a build is a sibling of the repository, on the same disk.
    assert SERVICES["build-engines"]["volumes"] == ["../work:/models"]
    assert SERVICES["server"]["depends_on"] == {"build-engines": {"condition": "service_completed_successfully"}}
    assert {SERVICES[name]["user"] for name in ("build-engines", *SERVERS)} == {SETTINGS["OWNER"]}
    assert {name for name, service in SERVICES.items() if "deploy" in service} == {"build-engines", "server"}


def test_a_health_check_ends_before_it_is_ended() -> None:
    given = {"Dockerfile.server health": arguments(DEPLOY / "Dockerfile.server", "HEALTHCHECK")[0]}
    given |= {f"{name} health": f"--timeout={SERVICES[name]['healthcheck']['timeout']}" for name in SERVERS}
    for where, options in given.items():
        (ours,) = [parsed(words).timeout for found, words in OURS if found == where]
        assert ours < int(re.findall(r"--timeout=(\d+)s", options)[0])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_what_is_copied_exists_and_reaches_the_build(dockerfile: Path) -> None:
    sources = [word for rest in arguments(dockerfile, "COPY") for word in rest.split()[:-1]]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if source != "." and not is_sent(source)] == []


def is_sent(path: str) -> bool:
    """Whether .dockerignore, which begins by leaving everything out, lets a path into the build."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    return any(path == kept or path.startswith(f"{kept}/") for kept in (line[1:] for line in lines if line[0] == "!"))


def test_the_wheel_can_be_built_from_what_is_sent() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    wheel = text.partition("[tool.hatch.build.targets.wheel]")[2].partition("[tool.ruff]")[0]
    needed = [*re.findall(r'^\s*"([\w/]+)",', wheel, re.MULTILINE), *re.findall(r'^"(\w+)" =', wheel, re.MULTILINE)]
    needed += ["pyproject.toml", "README.md", "LICENSE"]
    assert len(needed) == 5 + 1 + 3
    assert [path for path in needed if not is_sent(path) or not (ROOT / path).exists()] == []
    assert not any(is_sent(path) for path in ("tests", "export/demo", "work", ".venv"))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_images_do_not_run_as_root_and_install_what_was_tested(dockerfile: Path) -> None:
    assert arguments(dockerfile, "USER") == ["1000:1000"]
    installs = [step for run in arguments(dockerfile, "RUN") for step in run.split("&&") if "pip install" in step]
    assert all("-c constraints.txt" in step or "--no-deps ." in step for step in installs)
    (extra,) = re.findall(r"requirements\.py (\w+) >", dockerfile.read_text())
    assert extra == {".server": "models", ".builder": "export", ".client": "bench"}[dockerfile.suffix]


EXTRAS = [("models",), ("export",), ("bench",), ("serve",), ("serve", "bench")]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the images' Python is 3.12; tomllib is missing from 3.10")
@pytest.mark.parametrize("extras", EXTRAS, ids="+".join)
def test_the_requirements_of_an_image_are_those_that_pip_reads(extras: tuple[str, ...]) -> None:
    script = [sys.executable, str(DEPLOY / "requirements.py"), *extras]
    printed = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    asked = map(Requirement, printed)
    assert {normal(one) for one in asked if one.marker is None or one.marker.evaluate()} == required(*extras)
    assert len(printed) == len(set(printed))


def normal(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name) + str(requirement.specifier)


def required(*extras: str) -> set[str]:
    """What the installed metadata says, extras of our own resolved."""
    found = set()
    for requirement in map(Requirement, requires("tritonclip")):
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        found |= required(*requirement.extras) if requirement.name == "tritonclip" else {normal(requirement)}
    return found


def imports(file: Path) -> set[str]:
    """The names of all packages that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}}


def test_the_server_image_has_every_package_that_its_models_import() -> None:
    files = [*ROOT.glob("model_repository/*/1/*.py"), *ROOT.glob("export/tritonclip_export/*/*/1/*.py")]
    files += ROOT.glob("export/tritonclip_export/*/1/*.py")
    own = {file.stem for file in files} | {"triton_python_backend_utils"}
    # DALI's backend brings DALI.
    files = [file for file in files if "preprocess_dali" not in file.parts]
    imported = set().union(*map(imports, files)) - own - sys.stdlib_module_names
    homes = packages_distributions()
    needed = {canonicalize_name(distribution) for name in imported for distribution in homes[name]}
    given = {canonicalize_name(Requirement(one).name) for one in required("models")}
    assert {"pillow", "numpy", "onnxruntime", "tokenizers"} <= needed
    assert needed <= given
    # And nothing that none of them imports, but for what the client and the command around the server import.
    assert given - needed == {"tritonclient", "cryptography", "h11", "py-minisign"}
    assert not any("torch" in name or "pytriton" in name for name in given)


DOCUMENTED = re.findall(r"docker compose (.+?)(?:  |`|$)", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE)
DOCUMENTED += re.findall(r"docker compose (.+?)(?:  |$)", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)


@pytest.mark.parametrize("line", [line for line in DOCUMENTED if line.startswith("--profile")])
def test_documented_compose_commands_name_what_there_is(line: str) -> None:
    _, profile, action, *options = shlex.split(line)
    service = next((word for word in options if not word.startswith("-")), None)
    assert action in ("up", "down", "run")
    assert (action == "run") == (service is not None)
    assert profile in {one for name in SERVICES for one in SERVICES[name]["profiles"]}
    assert service is None or profile in SERVICES[service]["profiles"]


def test_documented_settings_are_those_of_the_file() -> None:
    table = re.findall(r"^\| (`[A-Z].*?) \|", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE)
    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == {*SETTINGS, "CUDA_VISIBLE_DEVICES"}


def test_documented_probes_ask_what_the_images_ask() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL)
    for probe in yaml.safe_load(text).values():
        assert parsed(probe["exec"]["command"]).timeout < probe["timeoutSeconds"]
