"""The short campaigns on a real server: what `make chaos` does for half an hour, in seconds."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tritonclip_chaos.campaign import Context, load
from tritonclip_chaos.campaigns._faults import Stage
from tritonclip_chaos.campaigns.overload import RUNNING_ROWS
from tritonclip_chaos.gaps import longest_gap
from tritonclip_chaos.records import Record
from tritonclip_chaos.runner import run_campaigns
from tritonclip_chaos.served import tree

# The targets of `make chaos` are for a quiet machine; here some seconds more are no defect.
PATIENT_S = 20.0


def assert_held(records: list[Record]) -> None:
    for record in records:
        told = (record.case, record.examples, record.leftovers)
        assert record.skipped == "", told
        assert (record.wrong, record.lost, record.failed, record.leftovers) == (0, 0, 0, []), told


def test_killed_processes_come_back_and_nobody_notices(context: Context) -> None:
    records = run_campaigns(context, [load("kills")], None)
    assert_held(records)
    *kills, end = records
    assert len(kills) == 3
    assert all(record.answered > 0 and record.figures["faults"] == 1 for record in kills)
    assert all("faults that lasted" not in record.figures for record in kills)
    assert all(record.outage_s < PATIENT_S for record in kills)
    assert end.met


def test_a_flood_is_answered_in_part_and_refused_in_part(context: Context) -> None:
    records = run_campaigns(context, [load("overload")], None)
    assert_held([record for record in records if " 1 x" in record.case])
    flooded = records[-1]
    assert (flooded.wrong, flooded.failed) == (0, 0), flooded.examples
    assert flooded.refused > flooded.answered > 0
    # What is late is lost for its caller, and what is computed for it is lost for all. Once that was nearly everything.
    assert flooded.lost < 0.1 * flooded.tried
    assert flooded.figures["rows for nobody"] <= RUNNING_ROWS
    # How much is left depends on the cores that the generator and the receiving leave.
    assert flooded.figures["goodput / peak"] > 0.1
    assert flooded.figures["recovery s"] < PATIENT_S


def test_the_harness_sees_an_outage(context: Context) -> None:
    """While whoever supervises is stopped, nobody revives: a campaign must not call that well."""
    with Stage(context, "kills") as stage:
        assert {"image", "text", "clip", "long text"} == set(stage.callers.kinds)
        encoder = next(stub for stub in stage.server.stubs() if stub.model == "image_encoder")
        os.kill(stage.server.pid, signal.SIGSTOP)
        try:
            begin_s = time.monotonic()
            os.kill(encoder.pid, signal.SIGKILL)
            time.sleep(3.0)
            samples = stage.callers.samples()
            assert longest_gap(samples, begin_s, time.monotonic(), ("image",)) > 2.0
        finally:
            os.kill(stage.server.pid, signal.SIGCONT)
        assert stage.callers.wait_good(time.monotonic(), 20.0) is not None
        assert tree.pss_mb(stage.server.processes()) > 50
        assert stage.closed().met


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["pauses", "exhaustion", "reload", "drain", "fairness", "http", "cancels"])
def test_the_other_short_campaigns(context: Context, name: str) -> None:
    records = run_campaigns(context, [load(name)], None)
    assert records
    for record in records:
        assert (record.wrong, record.leftovers) == (0, []), (record.case, record.examples, record.leftovers)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_soak(context: Context) -> None:
    context.minutes = 1.0
    assert_held(run_campaigns(context, [load("soak")], None))
