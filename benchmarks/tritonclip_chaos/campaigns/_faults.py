"""What campaigns of faults have in common: break something, look how long callers go without, count."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from types import TracebackType

from tritonclip_chaos.campaign import Context
from tritonclip_chaos.errors import ServerFault
from tritonclip_chaos.gaps import longest_gap
from tritonclip_chaos.records import Record
from tritonclip_chaos.served import tree
from tritonclip_chaos.served.watch import Watch

# The targets: seconds that callers of one kind may be without a good answer.
MODEL_LIMIT_S, SERVER_LIMIT_S = 1.0, 5.0
# A fault that is not over by then is one for good.
PATIENCE_S = 30.0
# Before a fault all kinds of calls are answered for so long.
CALM_S = 0.3
# Of a case whose faults last, no more are tried: the server has to be a new one each time.
MOST_LASTING = 2
# Of the output and the log of a server that does not come back.
_LINES_TOLD = 12
# No process has it: the largest number that Linux gives is 2**22.
_NOBODY = 2**22 + 1


class Stage:
    """A server under callers, to be damaged. A context manager.

    Args:
        context: says which, and how many callers.
        campaign: the name for its records.
        options: of `tritonclip serve`.
        repository: what is served, where it is not the context's.
        fresh: callers that connect anew for every call.
        shm_mb: of its /dev/shm.
    """

    def __init__(
        self,
        context: Context,
        campaign: str,
        *options: str,
        repository: Path | None = None,
        fresh: int = 0,
        shm_mb: int = 1024,
    ) -> None:
        self.context, self.campaign = context, campaign
        self._begin = partial(context.serve, *options, repository=repository, shm_mb=shm_mb)
        self._fresh = fresh
        self._stack = ExitStack()
        self._leftovers: list[str] = []
        self._worst_end_s = 0.0
        self._statuses: list[int] = []

    def __enter__(self) -> Stage:
        self._raise_curtain()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def case(self, name: str) -> Record:
        """A new record."""
        self.context.say(f"{self.campaign}: {name}")
        return Record(self.campaign, name, self.context.seed)

    def fault(
        self,
        record: Record,
        act: Callable[[], object],
        undo: Callable[[], object] = lambda: None,
        for_s: float = 0.0,
        instance: str | None = None,
    ) -> bool:
        """Do something, undo it after `for_s`, and wait until every kind of call is answered again.

        The outage counts from the moment when the fault is undone, or where it is over at once, when it is done.
        An `instance` is what the fault ended: its process has to be there again, and be another.

        Returns:
            Whether it came back; else there is a new server now.
        """
        time.sleep(CALM_S)
        before = instance and self.pid_of(instance)
        act()
        over_s = time.monotonic()
        if for_s:
            try:
                time.sleep(for_s)
            finally:
                undo()
            over_s = time.monotonic()
        is_back = self.callers.wait_good(over_s, PATIENCE_S) is not None
        gap_s = longest_gap(self.callers.samples(), over_s, time.monotonic(), self.callers.kinds)
        record.outage_s = max(record.outage_s, gap_s)
        record.count("faults")
        self.collect(record)
        if is_back and instance and not self._replaced(instance, before):
            record.example(f"answered, but without a new process of {instance}")
            is_back = False
        if not is_back:
            record.count("faults that lasted")
            record.example(f"not back after {PATIENCE_S:g} s: {self._silent().splitlines()[0]}")
            for who, said in (("the server", self.server.output), ("tritonserver", self.server.log)):
                self.context.say(f"  not back; {who} said last:\n" + "\n".join(said.splitlines()[-_LINES_TOLD:]))
            self.renew(record)
        return is_back

    def strike(self, what: str, instance: str, number: signal.Signals, times: int, limit_s: float) -> Record:
        """Send a signal that ends or stops a process, several times; returns the record, held against the targets."""
        record = self.case(f"{what} {instance}")
        for _ in range(times):
            self.fault(record, lambda: self.signal(instance, number), instance=instance)
            if record.figures.get("faults that lasted", 0) >= MOST_LASTING or self.context.left_s <= 0:
                break
        return self.judged(record, limit_s)

    def collect(self, record: Record) -> None:
        """Count the calls and the memory so far."""
        record.add(self.callers.take())
        record.worst_mb = max(record.worst_mb, self.watch.take_worst_mb())

    def judged(self, record: Record, limit_s: float) -> Record:
        """The record, complete and held against the targets."""
        self.collect(record)
        record.check("wrong answers", record.wrong, 0)
        record.check("calls failed, refused or lost", record.failed + record.refused + record.lost, 0)
        record.check("back within", record.outage_s, limit_s, unit="s")
        return record

    def renew(self, record: Record) -> None:
        """Go on with a new server; what callers of the old one still get counts."""
        self._lower_curtain()
        record.add(self.callers.take())
        self._raise_curtain()

    def closed(self) -> Record:
        """End the server, and say what it and those before it left behind."""
        record = self.case("what is left after the end")
        self._lower_curtain()
        record.leftovers = self._leftovers
        record.figures["servers"] = len(self._statuses)
        record.figures["seconds to the end"] = self._worst_end_s
        record.check("things left behind", len(record.leftovers), 0)
        record.check("exit status", max(map(abs, self._statuses)), 0)
        return record

    def pid_of(self, instance: str) -> int | None:
        """The process of a Python model's instance now, or of `tritonserver`."""
        if instance == "tritonserver":
            return tree.tritonserver(self.server.pid)
        return next((stub.pid for stub in self.server.stubs() if stub.instance == instance), None)

    def signal(self, instance: str, number: signal.Signals) -> None:
        """Send a signal to that process."""
        with suppress(ProcessLookupError):
            os.kill(self.pid_of(instance) or _NOBODY, number)

    def _replaced(self, instance: str, before: int | str | None) -> bool:
        """Whether the process of an instance is there and new, or becomes so."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self.pid_of(instance) not in (None, before):
                return True
            time.sleep(0.1)
        return False

    def _raise_curtain(self) -> None:
        self.server = self._stack.enter_context(self._begin())
        self.watch = self._stack.enter_context(Watch(self.server.pid))
        self.callers = self._stack.enter_context(self.context.calling(self.server.address, fresh=self._fresh))
        if self.callers.wait_good(time.monotonic(), 2 * PATIENCE_S) is None:
            raise ServerFault(f"a new server does not answer every kind of call: {self._silent()}")
        self.callers.take()

    def _silent(self) -> str:
        """The kinds of calls that were never answered well, and what they got."""
        samples = self.callers.samples()
        silent = set(self.callers.kinds) - {one.kind for one in samples if one.outcome == "answered"}
        got = sorted({f"{one.kind}: {one.detail[:200]}" for one in samples if one.kind in silent})
        return f"{', '.join(sorted(silent))} ({'; '.join(got) or 'no call has ended'})\n{self.server.output[-1500:]}"

    def _lower_curtain(self) -> None:
        self.callers.stop()
        began_s = time.monotonic()
        self._leftovers += self.server.stop()
        self._worst_end_s = max(self._worst_end_s, time.monotonic() - began_s)
        self._statuses.append(-1 if self.server.exit_status is None else self.server.exit_status)
        self._stack.close()
