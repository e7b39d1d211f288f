"""Who works on a run, or prepares data: a lock that holds between machines too, and is taken over when its owner is
dead.

<lock>        under flock, which the operating system lets go of however a process ends. On some network file systems it
              does not reach the other machines.
<lock>.<n>    the n-th owner: host, process, a token. The file's modification time is its heartbeat, every BEAT seconds;
              1970 says that it has let go.

The newest owner holds the lock. Its successor is whoever creates the next file, which the file system lets one process
do; numbers never come twice. Machines' clocks are not compared: a beat's age is that of the file beside one that is
touched now, both by the file server's clock. An owner that was stopped for longer than SILENCE, and has lost the lock
meanwhile, is told so by :meth:`Lock.confirm`, before it writes again.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from cwd.errors import UserError

BEAT, SILENCE = 15.0, 120.0  # seconds between two heartbeats, and without one after which an owner counts as dead
_HELD: set[str] = set()  # the tokens of this process: it may live on when it could not let go, on a broken disk
POLLS = (0.02, 1.0)  # seconds between two looks at a lock that is waited for, at first and in the end


class Busy(UserError):
    """Another process holds the lock."""


class Lost(UserError):
    """Another process has taken the lock over, as this one was silent for too long."""


@dataclass(frozen=True)
class Owner:
    """What the newest <lock>.<n> says; ``about`` is {} while it is being written."""

    path: Path
    number: int
    beat: float  # by the file server's clock; 0: it has let go
    about: dict[str, Any]

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return bool(self.about.get("machine") == _machine())

    def __str__(self) -> str:
        return f"process {self.about['pid']} on {self.about['host']}" if self.about else "another process"


class Lock:
    """A lock, for one process at a time.

    Args:
        path: the lock file.
        what: what it protects, as a message begins: "run 3f2a".
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._own: Path | None = None
        self._token = secrets.token_hex(8)
        self._let_go = threading.Event()

    @contextmanager
    def held(self, patience: float) -> Iterator[None]:
        """Holds the lock for this process.

        Args:
            patience: seconds to wait for another process.

        Raises:
            Busy: another process holds it.
            OSError: the folder of the lock cannot be written.
        """
        with open(self.path, "a") as file:
            self._wait(file, time.monotonic() + patience)
            self._let_go.clear()
            heart = threading.Thread(target=self._beat, daemon=True)
            heart.start()
            try:
                yield
            finally:
                self._let_go.set()
                heart.join()
                self._free()
                _HELD.discard(self._token)

    def confirm(self) -> None:
        """Nothing, if this process still holds the lock.

        Raises:
            Lost: another one does.
            FileNotFoundError: the folder is gone, and its disk perhaps with it.
        """
        assert self._own is not None, "not held"
        try:
            mine = json.loads(self._own.read_text())["token"] == self._token
        except (FileNotFoundError, ValueError, KeyError):
            mine = False
        if mine and not _numbered(self.path, _number(self._own) + 1).exists():
            return
        if not self.path.parent.is_dir():
            raise FileNotFoundError(2, "No such file or directory", str(self.path.parent))
        raise Lost(
            f"{self.what}: {newest_owner(self.path) or 'somebody'} has taken it over, as this process was silent for "
            f"{SILENCE:.0f} s; nothing more is written here"
        )

    def _wait(self, file: IO[str], until: float) -> None:
        pause, most = POLLS
        while (busy := self._take(file)) is not None:
            if time.monotonic() > until:
                raise Busy(f"{self.what}: {busy} is working on it; wait for it, or end it")
            time.sleep(pause)
            pause = min(pause * 1.5, most)

    def _take(self, file: IO[str]) -> str | None:
        """Takes the lock, or says who has it."""
        refused = not _flock(file, fcntl.LOCK_EX)
        owner = newest_owner(self.path)
        if _is_vacant(self.path, owner, refused):
            own = _numbered(self.path, owner.number + 1 if owner else 1)
            if self._create(own):
                return None
        _flock(file, fcntl.LOCK_UN)
        if owner is None or owner.beat == 0:
            return "another process"
        if owner.here:
            return str(owner)
        age = _now(self.path.parent) - owner.beat
        return f"{owner} (last heard of {max(age, 0):.0f} s ago, dead after {SILENCE:.0f} s)"

    def _create(self, own: Path) -> bool:
        """Becomes the owner of this number, unless another process is faster; then the older ones are removed."""
        about = {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}
        try:
            with open(own, "x") as file:
                json.dump({**about, "machine": _machine(), "token": self._token}, file)
        except FileExistsError:
            return False
        except OSError:  # a full disk
            own.unlink(missing_ok=True)
            raise
        found = newest_owner(self.path)
        if found is None or found.path != own:  # others came and went while this process slept
            own.unlink(missing_ok=True)
            return False
        for path in _owners(self.path):
            if _number(path) < found.number:
                path.unlink(missing_ok=True)
        self._own = own
        _HELD.add(self._token)
        return True

    def _beat(self) -> None:
        while not self._let_go.wait(BEAT):
            with suppress(OSError):  # confirm() says what is wrong
                if self._own is not None:
                    os.utime(self._own)

    def _free(self) -> None:
        """Lets go, if the lock is still its own. Needs no room on the disk."""
        with suppress(OSError, Lost):
            self.confirm()
            assert self._own is not None
            os.utime(self._own, (0, 0))
        self._own = None


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock now. Readers do not see each other, and write nothing that stays."""
    try:
        with open(path) as file:
            refused = not _flock(file, fcntl.LOCK_SH)
    except OSError:  # no lock file: nobody ever worked here
        return False
    return not _is_vacant(path, newest_owner(path), refused)


def newest_owner(path: Path) -> Owner | None:
    """The last process that took the lock, whether or not it still has it; None if there was none."""
    while True:
        found = max(_owners(path), key=_number, default=None)
        if found is None or _number(found) < 1:
            return None
        try:
            beat, text = found.stat().st_mtime, found.read_text()
        except FileNotFoundError:  # a successor has just removed it
            continue
        try:
            about = json.loads(text)
        except ValueError:
            about = {}
        return Owner(found, _number(found), beat, about if isinstance(about, dict) and "pid" in about else {})


def _is_vacant(path: Path, owner: Owner | None, refused: bool) -> bool:
    """Whether the lock may be taken; `refused`: flock says that it is held."""
    if owner is None or owner.beat == 0:
        return not refused
    if owner.here and (refused or not _lives(owner)):
        return not refused  # flock is right between processes of one machine
    return _now(path.parent) - owner.beat > SILENCE  # of another machine: flock may not reach it, or may outlive it


def _lives(owner: Owner) -> bool:
    if owner.about["pid"] == os.getpid() and owner.about.get("token") not in _HELD:
        return False
    began = _started(owner.about["pid"])
    return began is not None and began == owner.about.get("started")


def _started(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's units; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        with suppress(ProcessLookupError, PermissionError):  # not Linux
            os.kill(pid, 0)
            return "unknown"
        return None
    return None if state in "ZX" else fields[18]


@cache
def _machine() -> str:
    """What processes must share to see each other: the host, its start, and the process numbers' space."""
    facts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with suppress(OSError):
            facts.append(read().strip())
    return " ".join(facts)


def _now(folder: Path) -> float:
    """The time by the clock of the folder's file server, if the folder can be written."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.utime(file.fileno())
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _owners(path: Path) -> Iterator[Path]:
    return path.parent.glob(f"{glob.escape(path.name)}.*")


def _number(path: Path) -> int:
    number = path.name.rpartition(".")[2]
    return int(number) if number.isdecimal() else 0


def _flock(file: IO[str], kind: int) -> bool:
    """Whether flock could be had at once, or is not known here."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has none
        return True
    return True
