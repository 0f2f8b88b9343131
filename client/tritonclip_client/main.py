"""The `tritonclip` command: finds the subcommands that the installed packages bring, and runs one.

A subcommand is a module behind an entry point of the group `tritonclip.commands`. It has
`HELP: str`, `add_arguments(parser) -> None` and `run(args) -> int` (the exit status), and imports
whatever is heavy inside `run`. An exception with an integer attribute `exit_code` is a message for
the user: it is printed as one line, without a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points, version

GROUP = "tritonclip.commands"
EXIT_INTERRUPTED = 130
EXIT_MISSING_EXTRA = 2

# The extra of the distribution that brings what a package imports.
EXTRAS = {
    "tritonclip_export": "export",
    "tritonclip_serve": "serve",
    "tritonclip_bench": "bench",
    "tritonclip_chaos": "bench",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(words).parse_args(words)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _discard_output()
    except ModuleNotFoundError as error:
        return _missing_module(error, _commands()[args.command])
    except Exception as error:
        exit_code = getattr(error, "exit_code", None)
        if not isinstance(exit_code, int):
            raise
        print(f"error: {error}", file=sys.stderr)
        return exit_code


def build_parser(words: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser with the options of the command that `words` begin with, or else of all commands."""
    commands = _commands()
    parser = argparse.ArgumentParser(
        prog="tritonclip", description="Put a CLIP model, LoRA and all, into production on NVIDIA Triton."
    )
    parser.add_argument("--version", action="version", version=version("tritonclip"))
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = words[0] if words and words[0] in commands else None
    for name in sorted(commands):
        if chosen in (None, name):
            _add_command(subparsers, commands[name])
    return parser


def _commands() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], point: EntryPoint) -> None:
    module = point.load()
    subparser = subparsers.add_parser(point.name, help=module.HELP, description=module.HELP)
    module.add_arguments(subparser)
    subparser.set_defaults(run=module.run)


def _discard_output() -> int:
    # Whoever read it has seen enough, as `head` does; Python's own flush at the end must not fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _missing_module(error: ModuleNotFoundError, point: EntryPoint) -> int:
    extra = EXTRAS.get(point.module.split(".")[0])
    if extra is None:
        raise error
    print(
        f"error: `tritonclip {point.name}` needs the Python package {error.name!r}, which is not installed; "
        f"run `pip install '.[{extra}]'` in a clone of tritonclip",
        file=sys.stderr,
    )
    return EXIT_MISSING_EXTRA


if __name__ == "__main__":
    sys.exit(main())
