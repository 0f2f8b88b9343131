"""Reads out of a server's log which models did not load, and why."""

from __future__ import annotations

import json
import re

from tritonclip_serve.errors import ModelFailure

_SERVING = "Started GRPCInferenceService"
_FAILURES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"\"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)\"$",
        r"\"failed to load model '(?P<model>[^']+)': (?P<reason>.*)\"$",
        r"ensemble (?P<model>\S+) (?P<reason>contains models that are not available or ambiguous: .*)\"$",
        # The server waits for this one forever.
        r"(?P<reason>Python model file not found in '.*/(?P<model>[^/]+)/\d+/[^/]+')$",
        # A warm-up item that fails may take the server down before it says so of the model.
        r"\"Failed to process the request\(s\) for model '(?P<model>.+?)(?:_\d+)+', message: (?P<reason>.*)\"$",
        r"\"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)\"$",
    )
)
_LOADED = re.compile(r"successfully loaded '([^']+)'")
_FATAL = re.compile(r"^error: (.+)$", re.MULTILINE)
_SYNTAX = re.compile(r"Error parsing text-format [\w.]+: (\d+):(\d+): (.+)$", re.MULTILINE)
_STATUS = re.compile(r"^(?:Internal|Invalid argument|Unavailable|Not found|Unsupported|Unknown|Already exists): ")
# What the Python backend adds below the exception: where it was raised.
_LOCATION = re.compile(r"\n+At:\n.*", re.DOTALL)
_USAGE = "Usage: tritonserver"
_TRACEBACK = "Traceback (most recent call last):"


def find_failures(log: str) -> list[ModelFailure]:
    """Every model that the log says did not load, once, the surest kind of line first."""
    starting = log.partition(_SERVING)[0]
    reasons: dict[str, str] = {}
    # Of two lines about one model the kind that comes first in the table says more.
    for match in (match for pattern in _FAILURES for match in pattern.finditer(starting)):
        reasons.setdefault(match["model"], readable(match["reason"]) + _syntax_error(starting, match))
    return [ModelFailure(model, reason) for model, reason in reasons.items()]


def loaded_models(log: str) -> set[str]:
    """The models that the log says are loaded."""
    return set(_LOADED.findall(log))


def last_words(log: str) -> str:
    """The line with which the server says why it ends, or the last line that is not empty."""
    fatal = _FATAL.findall(log)
    # A flag that it does not know is named before the list of the flags that it knows.
    said = log.partition(_USAGE)[0].strip() or log.strip() or "it wrote nothing"
    return str(fatal[-1]) if fatal else said.splitlines()[-1].strip()


def readable(reason: str) -> str:
    """One line out of a message as Triton logs it: unescaped, without status, location and traceback."""
    text = _STATUS.sub("", _LOCATION.sub("", _unescape(reason)))
    if _TRACEBACK in text:
        text = text.strip().splitlines()[-1]
    return " ".join(text.split())


def _unescape(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


def _syntax_error(log: str, match: re.Match[str]) -> str:
    """What the parser wrote just before the line that names the config which cannot be read."""
    if "failed to read text proto" not in match["reason"]:
        return ""
    found = list(_SYNTAX.finditer(log, 0, match.start()))
    return " (line {}, column {}: {})".format(*found[-1].groups()) if found else ""
