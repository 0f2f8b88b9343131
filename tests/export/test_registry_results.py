"""From a test's record to the page: the recorder, the checks, and that page and data files agree."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tritonclip_export.errors import ExportError
from tritonclip_export.registry import results, table
from tritonclip_export.registry.catalog import all_rows
from tritonclip_export.registry.results import all_exercised, exercised, merge, read_record, read_results

ROOT = Path(__file__).parents[2]
RECORD = {
    "config": "ViT-B-16-SigLIP",
    "family": "SigLIP",
    "source": "Hugging Face directory",
    "reference": "transformers",
    "image_cosine": 0.9999999,
    "text_cosine": 0.9999998,
    "max_abs": 3e-7,
    "served": True,
    "scale": "true",
}


def test_the_page_says_what_the_data_files_say():
    assert table.PAGE.read_text("utf-8") == table.render(list(all_rows()), all_exercised()), (
        "docs/families.md is stale; run: python -m tritonclip_export.registry.table"
    )


def test_the_checked_in_results_are_valid_records():
    assert read_results(results.FILE) == list(all_exercised())


def test_the_page_shows_sizes_and_results():
    page = table.render(list(all_rows()), [read_record(RECORD)])
    row = next(line for line in page.splitlines() if line.startswith("| `ViT-B-16-SigLIP` | 224 |"))
    assert row == (
        "| `ViT-B-16-SigLIP` | 224 | 64 | 768 | `timm/ViT-B-16-SigLIP` | sigmoid | 92.9 | 110.3 | 35.4 | 11.0 "
        "| bicubic, squash, 0.5 | `webli` | served |"
    )
    assert "| [SigLIP](#siglip) | 11 | 224 to 512 | 16 to 64 | sigmoid | 1 (1 served) | 0.9999998 |" in page
    assert "| transformers | 0.9999999 | 0.9999998 | 3.0e-07 | served |" in page


def test_a_changed_size_changes_the_page():
    rows = list(all_rows())
    changed = [replace(rows[0], model=replace(rows[0].model, image_parameters=1)), *rows[1:]]
    assert table.render(changed, []) != table.render(rows, [])


def test_new_results_replace_the_old_and_the_page(tmp_path):
    (tmp_path / "docs").mkdir()
    store, page, given = tmp_path / "exercised.json", tmp_path / "docs" / "families.md", tmp_path / "results.json"
    store.write_text(results.to_json([read_record({**RECORD, "config": "ViT-B-16-SigLIP-512"})]))
    given.write_text(json.dumps([RECORD]))
    table.write([given], store, page)
    assert read_results(store) == [read_record(RECORD)]
    assert page.read_text() == table.render(list(all_rows()), [read_record(RECORD)])


@pytest.mark.parametrize("content", ["[]", "{}", "not JSON", '[{"config": "ViT-B-32"}]', "[1]"])
def test_wrong_results_change_nothing(tmp_path, content):
    store, page, given = tmp_path / "exercised.json", tmp_path / "families.md", tmp_path / "results.json"
    store.write_text("[]\n")
    given.write_text(content)
    with pytest.raises(ExportError):
        table.write([given], store, page)
    assert store.read_text() == "[]\n"
    assert not page.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": "ViT-B-16-SigLYP"}, "no model is called 'ViT-B-16-SigLYP'; closest: ViT-B-16-SigLIP"),
        ({"family": "OpenAI CLIP"}, "is not of the family 'OpenAI CLIP' but of: SigLIP"),
        ({"source": ""}, "source is ''"),
        ({"text_cosine": float("nan")}, "text_cosine is nan"),
        ({"image_cosine": 2}, "image_cosine is 2"),
        ({"max_abs": -1e-9}, "max_abs is -1e-09"),
        ({"max_abs": None}, "max_abs is None"),
        ({"served": "yes"}, "served has to be true or false"),
        ({"scale": "small"}, "scale one of true, text shrunk, shrunk"),
        ({"seconds": 3}, "its fields are"),
    ],
)
def test_a_wrong_record_is_refused(change, message):
    with pytest.raises(ExportError, match=message):
        read_record({**RECORD, **change})


def test_a_record_gets_the_registrys_spelling():
    record = read_record({**RECORD, "config": "vit-h-14-378-quickgelu", "family": "dfn5b"})
    assert (record.config, record.family) == ("ViT-H-14-378-quickgelu", "DFN")


def test_records_of_one_model_are_merged_to_the_worst():
    exported = read_record({**RECORD, "served": False, "image_cosine": 0.9999991})
    served = read_record({**RECORD, "text_cosine": 0.9999992, "max_abs": 2e-6})
    worst = replace(exported, served=True, text_cosine=0.9999992, max_abs=2e-6)
    assert merge([exported, served]) == merge([served, exported]) == [worst]


def test_records_of_other_sources_stay_apart():
    record = read_record(RECORD)
    others = [replace(record, source="open_clip tag"), replace(record, reference="timm")]
    assert len(merge([record, *others, replace(record, scale="shrunk")])) == 4


def test_records_are_in_the_order_of_the_families():
    records = [read_record(RECORD), read_record({**RECORD, "config": "RN50-quickgelu", "family": "OpenAI CLIP"})]
    assert [record.family for record in merge(records)] == ["OpenAI CLIP", "SigLIP"]


def test_the_most_that_was_done_is_shown():
    shrunk = read_record({**RECORD, "scale": "shrunk"})
    exported = read_record({**RECORD, "served": False})
    row = next(row for row in all_rows() if row.model.config == RECORD["config"])
    other = next(row for row in all_rows() if row.model.config == "ViT-B-16-SigLIP-256")
    assert exercised(row, [exported]) == "exported"
    assert exercised(row, [exported, shrunk]) == "served (shrunk)"
    assert exercised(row, [shrunk, replace(shrunk, scale="text shrunk")]) == "served (text shrunk)"
    assert exercised(row, [shrunk, read_record(RECORD), exported]) == "served"
    assert exercised(other, [shrunk]) == ""


def test_the_recorder_keeps_what_passed(tmp_path):
    shutil.copy(ROOT / "tests" / "families" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    (tmp_path / "test_some.py").write_text(
        f"RECORD = {RECORD!r}\n"
        "def test_good(family_results): family_results(RECORD)\n"
        "def test_bad(family_results):\n"
        "    family_results({**RECORD, 'config': 'ViT-B-16-SigLIP-256'})\n"
        "    assert False\n"
        "def test_wrong(family_results): family_results({**RECORD, 'served': 1})\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--family-results", "out.json", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "2 failed" in done.stdout
    assert "served has to be true or false" in done.stdout
    assert read_results(tmp_path / "out.json") == [read_record(RECORD)]
