"""`--family-results FILE`: what the tests of this folder proved, for `python -m tritonclip_export.registry.table`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tritonclip_export.registry.results import merge, read_record, to_json

_OPTION = "--family-results"
_OF_TEST = pytest.StashKey[list]()
_OF_SESSION = pytest.StashKey[list]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known where this folder is named on the command line, as in `pytest tests/families --family-results FILE`."""
    parser.addoption(_OPTION, metavar="FILE", type=Path, help="write what the tests of families exercised, as JSON")


@pytest.fixture
def family_results(request: pytest.FixtureRequest):
    """Call it with a record, a dict of the fields of `registry.results.Record`; kept only if the test passes.

    Records of one model by several tests are merged: the worst figures, served if one of them was.
    """
    records = request.node.stash.setdefault(_OF_TEST, [])
    return lambda record: records.append(read_record(record))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.when == "call" and report.passed:
        item.config.stash.setdefault(_OF_SESSION, []).extend(item.stash.get(_OF_TEST, []))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every family is exported in each run, and served in the long one; a fixture of a module cannot mark its tests."""
    for item in items:
        if item.name.startswith("test_the_server_embeds_as_the_checkpoint_does"):
            family = item.callspec.params["exported"]
            if not family.is_quick:
                item.add_marker(pytest.mark.slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption(_OPTION, default=None)
    if path is not None:
        path.write_text(to_json(merge(session.config.stash.get(_OF_SESSION, []))), "utf-8")
