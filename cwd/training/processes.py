"""The processes of one start: how many there are, what they agree on, and how one learns that another is gone.

They share a key-value store, the one that torch's process group meets at. Each process says there, every BEAT seconds,
that it lives, and looks at the others from a thread of its own. Whoever finds one silent for SILENCE seconds, or reads
that one has failed, ends its own process: a collective that waits for a dead process may otherwise wait for ever.
Torch is loaded only where there are several processes.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from cwd.errors import UserError
from cwd.schema import Machine

BEAT, SILENCE = 2.0, 20.0  # seconds
JOIN = 600.0  # seconds within which all processes must have started
POLL = 0.02  # seconds
LOST = 1  # exit status of a process that ends because another has failed
SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # what launchers set

T = TypeVar("T")


class Processes:
    """One process that is alone: nothing to agree on, nobody to wait for."""

    rank, count = 0, 1
    on_loss: Callable[[str], None] = print  # told, in another thread, why this process ends because of another

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def begin(self, on_loss: Callable[[str], None]) -> None:
        """A run begins; `on_loss` is told, in another thread, if this process ends because another has failed."""

    def agree(self, facts: dict[str, Any]) -> None:
        """Waits until all processes are here, and stops them all unless they know the same facts, nested plain data.

        Raises:
            UserError: what differs, and where.
        """

    def in_turn(self, function: Callable[[], T]) -> T:
        """What `function` returns, called in the main process first, then in the others."""
        return function()

    def tell(self, text: str) -> None:
        """The main process's word for the others."""

    def hear(self) -> str:
        """Waits for what the main process tells, however long it takes."""
        raise NotImplementedError("one process has nobody to hear")

    def end(self, error: BaseException | None = None) -> None:
        """This process is done with the run, or has failed: then the others end too."""


class Several(Processes):
    """One of several processes. `store` is a torch.distributed.Store that all of them reach."""

    def __init__(self, store: Any, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._store, self._own = store, store.clone()  # a call that waits would keep the other thread waiting too
        self._elsewhere = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # in the launcher
        self._names = [f"process {number}" for number in range(count)]
        self._number = 0  # of runs begun
        self._words = 0  # told or heard in this run
        self._busy = False
        store.set(f"name/{rank}", f"process {rank} ({socket.gethostname()}, pid {os.getpid()})")
        self._answered = time.monotonic()
        for work in (self._watch, self._watch_the_store):
            threading.Thread(target=work, daemon=True).start()

    def begin(self, on_loss: Callable[[str], None]) -> None:  # noqa: D102
        self._number += 1
        self._words, self.on_loss, self._busy = 0, on_loss, True

    def agree(self, facts: dict[str, Any]) -> None:  # noqa: D102
        self._words += 1
        given = [json.loads(text) for text in self._gather(json.dumps(facts))]
        found = [(rank, *different) for rank in range(self.count) if (different := _differ(given[0], given[rank]))]
        if not found:
            return
        if not self.main:
            self._follow()
        rank, name, ours, theirs = found[0]
        where = f"{name}: {json.dumps(theirs)} in {self._names[rank]}, {json.dumps(ours)} in {self._names[0]}"
        raise UserError(f"{where}; all processes must be started alike")

    def _gather(self, text: str) -> list[str]:
        """What each process says, and their names, once all have said it."""
        everyone = [self._key(f"word/{self._words}/{rank}") for rank in range(self.count)]
        self._store.set(everyone[self.rank], text)
        late = time.monotonic() + JOIN
        while not self._store.check(everyone):
            if time.monotonic() > late:
                missing = [str(rank) for rank, key in enumerate(everyone) if not self._store.check([key])]
                raise UserError(
                    f"{self.count} processes were started; after {JOIN:.0f} s these are not there: {', '.join(missing)}"
                )
            time.sleep(POLL)
        self._names = [self._store.get(f"name/{rank}").decode() for rank in range(self.count)]
        return [self._store.get(key).decode() for key in everyone]

    def _follow(self) -> NoReturn:
        """The main process is about to fail and says why; the heartbeat then ends this one."""
        time.sleep(JOIN)
        sys.exit(LOST)

    def in_turn(self, function: Callable[[], T]) -> T:  # noqa: D102
        if not self.main:
            self.hear()
            return function()
        result = function()
        self.tell("your turn")
        return result

    def tell(self, text: str) -> None:  # noqa: D102
        self._words += 1
        if self.main:
            self._store.set(self._key(f"word/{self._words}"), text)

    def hear(self) -> str:  # noqa: D102
        self._words += 1
        key = self._key(f"word/{self._words}")
        while not self._store.check([key]):
            time.sleep(POLL)
        return self._store.get(key).decode()

    def end(self, error: BaseException | None = None) -> None:  # noqa: D102
        if isinstance(error, RuntimeError) and _is_of_the_network(error):
            # Another process is gone: the heartbeat finds out which, says so and ends this one, unless the launcher,
            # which has seen it too, does that first.
            with suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(SILENCE + 2 * BEAT)
        if error is not None:
            message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self._store.set(self._key("failed"), json.dumps([self.rank, message.partition("\n")[0]]))
        self._busy = False
        if isinstance(error, UserError) and not self.main:
            sys.exit(2)  # the main process says it

    def leave(self) -> None:
        """This process ends, as it should."""
        self._busy = False
        if self.main and not self._elsewhere:  # the others must not lose the store before they are done
            patience = time.monotonic() + SILENCE
            while not self._store.check([f"left/{rank}" for rank in range(1, self.count)]):
                if time.monotonic() > patience:
                    break
                time.sleep(POLL)
            time.sleep(BEAT / 4)  # what they do after saying so takes a moment
        with suppress(RuntimeError):  # the store lived in another process, which has ended
            self._store.set(f"left/{self.rank}", "")

    def _key(self, name: str) -> str:
        return f"run/{self._number}/{name}"

    def _watch(self) -> None:
        """Of the thread: beats, and looks at the others."""
        counts, heard, beats = dict.fromkeys(range(self.count), 0), dict.fromkeys(range(self.count), 0.0), 0
        while True:
            try:
                beats += 1
                self._own.set(f"beat/{self.rank}", str(beats))
                self._look(counts, heard)
                self._answered = time.monotonic()
            except RuntimeError:  # torch's DistStoreError and DistNetworkError are
                self._lose("the store that the processes share is lost: the launcher or process 0 is gone", tell=False)
            time.sleep(BEAT)

    def _watch_the_store(self) -> None:
        """Of another thread, as the first may wait for the store."""
        while True:
            time.sleep(BEAT)
            if time.monotonic() - self._answered > SILENCE + BEAT:
                self._lose(
                    "the store that the processes share is silent: the launcher or process 0 is gone", tell=False
                )

    def _look(self, counts: dict[int, int], heard: dict[int, float]) -> None:
        now = time.monotonic()
        if self._own.check([self._key("failed")]):
            rank, message = json.loads(self._own.get(self._key("failed")))
            if rank != self.rank:
                self._lose(f"{self._names[rank]} failed: {message}" if self.main else "")
        for rank in range(self.count):
            if rank == self.rank or not self._own.check([f"beat/{rank}"]) or self._own.check([f"left/{rank}"]):
                continue
            count = int(self._own.get(f"beat/{rank}"))
            if count != counts[rank]:
                counts[rank], heard[rank] = count, now
            elif now - heard[rank] > SILENCE:
                said = self.main or rank == 0  # once, if it can be
                self._lose(f"{self._names[rank]} has not been heard of for {SILENCE:.0f} s" if said else "")

    def _lose(self, message: str, tell: bool = True) -> None:
        """Ends this process, whatever its main thread waits for, with a line unless that is empty."""
        if not self._busy:
            return
        if message:
            self.on_loss(message)
        sys.stdout.flush()
        if tell:
            with suppress(RuntimeError):
                self._own.set(f"left/{self.rank}", "")
        os._exit(LOST)


def join(machine: Machine) -> Processes:
    """This process among those that the launcher started; :class:`Processes` if it is alone.

    Raises:
        UserError: the launcher meant several processes but told this one nothing of the others, or there are not as
            many as `machine` wants.
    """
    announced = [int(os.environ[name]) for name in SIZES if os.environ.get(name, "").isdigit()]
    asked = max([1, *announced, _asked_of_accelerate()])
    lacking = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if asked > 1 and (lacking or int(os.environ["WORLD_SIZE"]) != asked):
        raise UserError(
            f"{asked} processes were asked for, but this one was told nothing of the others and would train alone "
            f"(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); use torchrun --nproc-per-node {asked} train.py ..."
        )
    if machine.processes and asked != machine.processes:
        raise UserError(
            f"machine.processes={machine.processes}: the launcher started {asked}; use torchrun --nproc-per-node "
            f"{machine.processes} train.py ..."
        )
    if machine.sharding != "none" and asked == 1:
        raise UserError(
            f"machine.sharding={machine.sharding}: there is one process; use torchrun --nproc-per-node 2 train.py ..., "
            "or machine.sharding=none"
        )
    return Processes() if asked == 1 else _meet()


@cache
def _meet() -> Several:
    from torch.distributed import rendezvous

    store, rank, count = next(rendezvous("env://"))
    several = Several(store, rank, count)
    atexit.register(several.leave)
    return several


def _asked_of_accelerate() -> int:
    """What ``accelerate launch --num_processes`` was given, where it starts one process all the same: with --cpu."""
    if "ACCELERATE_USE_CPU" not in os.environ or "WORLD_SIZE" in os.environ:
        return 1
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().replace("=", "\0").split("\0")
    except OSError:
        return 1
    given = [b for a, b in pairwise(words) if a in ("--num_processes", "--num-processes")]
    return int(given[-1]) if given and given[-1].isdigit() else 1


def _differ(ours: Any, theirs: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """The dotted name of the first difference between nested data, and both values."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return None if ours == theirs else (name, ours, theirs)
    for key in [*ours, *theirs]:
        found = _differ(ours.get(key), theirs.get(key), f"{name}.{key}" if name else key)
        if found is not None:
            return found
    return None


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether a collective failed, as it does when its other end is gone."""
    return any(word in str(error).lower() for word in ("gloo", "nccl", "connection"))
