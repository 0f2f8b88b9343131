"""What a campaign is, and what it is given."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from tritonclip_chaos.callers import CALLERS, Callers
from tritonclip_chaos.errors import ChaosError
from tritonclip_chaos.material import Material, take_references
from tritonclip_chaos.records import Record
from tritonclip_chaos.served.server import OwnServer

T = TypeVar("T")

# In the order in which they run and stand on the page. A module of each name has `CAMPAIGN`.
NAMES = (
    "kills",
    "pauses",
    "exhaustion",
    "reload",
    "drain",
    "overload",
    "fairness",
    "images",
    "texts",
    "requests",
    "http",
    "cancels",
    "parsers",
    "soak",
)
# Longer than all others together; it runs only where it is asked for by name.
ONLY_BY_NAME = frozenset({"soak"})


@dataclass
class Context:
    """What a campaign works with.

    Attributes:
        seed: decides everything that is drawn.
        short: the version for `make test`: the same cases, fewer times.
        repository: what servers of our own serve; None where only `address` is given.
        address: a server that runs already and must survive; None: campaigns start their own.
        folder: for files; it is gone after the run.
        minutes: the time that one campaign may take, and the length of a soak; None: as long as it needs.
        callers: threads with a client each.
        say: tells progress.
    """

    seed: int
    folder: Path
    repository: Path | None = None
    address: str | None = None
    short: bool = False
    minutes: float | None = None
    callers: int = CALLERS
    say: Callable[[str], None] = lambda line: None
    _material: Material | None = field(default=None, repr=False)
    _end_s: float = field(default=float("inf"), repr=False)

    def begin(self) -> None:
        """Start the clock of the next campaign."""
        self._end_s = float("inf") if self.minutes is None else time.monotonic() + self.minutes * 60

    @property
    def left_s(self) -> float:
        """Seconds that the campaign may still take."""
        return self._end_s - time.monotonic()

    def pick(self, full: T, short: T) -> T:
        """One of two numbers."""
        return short if self.short else full

    def draw(self, name: str) -> random.Random:
        """A stream of random numbers of its own for everything that has a name."""
        return random.Random(f"{self.seed}:{name}")

    def serve(self, *options: str, repository: Path | None = None, shm_mb: int = 1024) -> OwnServer:
        """A server that may be damaged, to be entered; `options` are of `tritonclip serve`."""
        chosen = repository or self.repository
        assert chosen is not None
        return OwnServer(chosen, *options, shm_mb=shm_mb)

    def material(self, address: str) -> Material:
        """Questions and answers, asked once, of the first server, to which nothing has happened yet."""
        if self._material is None:
            self._material = take_references(address, self.seed)
        return self._material

    def calling(self, address: str, *, fresh: int = 0) -> AbstractContextManager[Callers]:
        """Callers for a server, to be entered."""
        return Callers(address, self.material(address), self.seed, count=self.callers, fresh=fresh)


@dataclass(frozen=True)
class Campaign:
    """Something that is done to a server.

    Attributes:
        name: on the command line, of the result's file, and in every record.
        help: one line for people.
        run: does it, and yields a record a case.
        own_server: it damages the server, and never touches one that runs already.
        about: what the page tells about how it is measured.
    """

    name: str
    help: str
    run: Callable[[Context], Iterator[Record]]
    own_server: bool = True
    about: str = ""


def load(name: str) -> Campaign:
    """The campaign of a name.

    Raises:
        ChaosError: there is none.
    """
    if name not in NAMES:
        raise ChaosError(f"there is no campaign {name!r}; there are: {', '.join(NAMES)}")
    campaign: Campaign = import_module(f"tritonclip_chaos.campaigns.{name}").CAMPAIGN
    return campaign
