"""One client under threads, and single requests under gevent."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kserve_server import Server, serving, vectors
from tritonclip_client import ClipClient

PATIENCE_S = 20.0


def test_one_client_serves_many_threads():
    lists = [[b"%d of %d" % (number, thread) for number in range(9)] for thread in range(8)]
    with serving() as server, ClipClient(server.address) as client, ThreadPoolExecutor(8) as pool:
        results = list(pool.map(client.embed_images, lists))

    for images, result in zip(lists, results, strict=True):
        np.testing.assert_array_equal(result, vectors(images))


def run_against(server: Server, program: str) -> list[str]:
    """The words that a program printed, run in an interpreter of its own with the server's address."""
    command = [sys.executable, "-c", program, server.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()


GEVENT = """
from gevent import monkey; monkey.patch_all()
import grpc.experimental.gevent as grpc_gevent; grpc_gevent.init_gevent()
import gevent, sys
from tritonclip_client import ClipClient
with ClipClient(sys.argv[1]) as client:
    jobs = [gevent.spawn(client.embed_images, [b"image %d" % n]) for n in range(6)]
    gevent.joinall(jobs, timeout=20, raise_error=True)
    print([job.value.shape for job in jobs] == [(1, 16)] * 6)
"""


def test_single_requests_work_side_by_side_under_gevent():
    together = threading.Barrier(6)
    with serving(Server(on_infer=lambda call: together.wait(PATIENCE_S))) as server:
        assert run_against(server, GEVENT) == ["True"]


def test_a_single_request_starts_no_thread():
    program = """
import sys, threading
from tritonclip_client import ClipClient
with ClipClient(sys.argv[1]) as client:
    client.similarity([b"image"], ["a", "b"])
    client.embed_images([b"image"])
    print(threading.active_count())
"""
    with serving() as server:
        assert run_against(server, program) == ["1"]
