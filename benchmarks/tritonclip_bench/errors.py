"""The errors of a load test, one tree.

BenchError                  exit code 2: something given to the load test is wrong
├── PriceError              the price table has no such instance, or a price is not a price
├── RecordError             a file is no record of a benchmark, or of a newer version
├── WrongAnswerError        the server answered, but not with what the model promises
├── ServerUnavailableError  exit code 3: nothing ready answers at the address
├── LoadError               exit code 1: the load generator gave no result
└── DemoError               exit code 1: a step of the demo failed; its own message stands above
"""

from __future__ import annotations


class BenchError(Exception):
    """Something given to the load test is wrong; the message says what, what is allowed and what to do."""

    exit_code = 2


class PriceError(BenchError):
    """The price table has no such instance, or a price is not a price."""


class RecordError(BenchError):
    """A file is no record of a benchmark, or one of a newer version."""


class WrongAnswerError(BenchError):
    """The server answered, but not with what the model promises: counted as a failed request."""


class ServerUnavailableError(BenchError):
    """Nothing ready answers at the address."""

    exit_code = 3


class LoadError(BenchError):
    """The load generator gave no result."""

    exit_code = 1


class DemoError(BenchError):
    """A step of the demo failed; its own message stands above."""

    exit_code = 1
