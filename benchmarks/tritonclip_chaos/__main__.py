"""`python -m tritonclip_chaos`: as `tritonclip chaos`, from a checkout that is not installed."""

from __future__ import annotations

import argparse
import sys

from tritonclip_chaos.commands import chaos
from tritonclip_chaos.errors import ChaosError


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tritonclip_chaos", description=chaos.HELP)
    chaos.add_arguments(parser)
    try:
        return chaos.run(parser.parse_args())
    except ChaosError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
