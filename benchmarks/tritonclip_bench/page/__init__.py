"""One self-contained HTML page from load records: no request to anywhere, no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tritonclip_bench.errors import RecordError
from tritonclip_bench.files import write_bytes
from tritonclip_bench.records import Record, flatten_all


def write_page(path: Path, records: Sequence[Record], name: str = "this run") -> None:
    """Write the page of whole records (of any kind, as `--json` writes them, or of `read_record`) to `path`.

    Args:
        name: what a record without a label is called.

    Raises:
        RecordError: the records hold no run.
        BenchError: the file cannot be written.
    """
    write_loads(path, flatten_all((record, name) for record in records))


def write_loads(path: Path, loads: Sequence[Record]) -> None:
    """Write the page of load records (of `records.read_loads`) to `path`; raises as `write_page`."""
    write_bytes(path, render_page(loads).encode())


def render_page(loads: Sequence[Record]) -> str:
    """The page of load records (of `records.read_loads`).

    Raises:
        RecordError: there is none.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from tritonclip_bench.page.view import view

    if not loads:
        raise RecordError("the records hold no run; measure one with `tritonclip bench --json FILE`")
    environment = Environment(
        loader=PackageLoader("tritonclip_bench.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(view(loads))
