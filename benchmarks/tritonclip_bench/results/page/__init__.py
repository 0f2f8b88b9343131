"""One self-contained HTML page from load records: no request to anywhere, no script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tritonclip_bench.errors import RecordError
from tritonclip_bench.files import write_bytes
from tritonclip_bench.records import Record, flatten_all


def save_page(path: Path | None, record: Record) -> None:
    """Write the page of a record of any kind that was just measured to `path`; nothing, where that is None.

    Raises:
        RecordError: the record holds no run.
        BenchError: the file cannot be written.
    """
    if path is not None:
        # As it is read from a file: tuples and the like are gone.
        write_loads(path, flatten_all([(json.loads(json.dumps(record)), path.stem)]))


def write_loads(path: Path, loads: Sequence[Record]) -> None:
    """Write the page of load records (of `records.read_loads`) to `path`; raises as `save_page`."""
    write_bytes(path, render_page(loads).encode())


def render_page(loads: Sequence[Record]) -> str:
    """The page of load records (of `records.read_loads`).

    Raises:
        RecordError: there is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from tritonclip_bench.results.page.view import view

    if not loads:
        raise RecordError("the records hold no run; measure one with `tritonclip bench --json FILE`")
    environment = Environment(
        loader=PackageLoader("tritonclip_bench.results.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(view(loads))
