"""Files that are either whole or absent: what is written here survives kill -9 and power loss at any instant."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

DISK = (  # what a disk that is full, read-only, broken or gone answers
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENODEV,
)


def write_json(path: Path, value: Any) -> None:
    """Replaces `path` by `value` as JSON, atomically: a reader sees the old file or the new one."""
    write_atomically(path, as_json(value))


def as_json(value: Any) -> bytes:
    """The text of a JSON file."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`, atomically and durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def overwrite(path: Path, content: bytes) -> None:
    """Writes over a small file where it lies, which a full disk still takes; a crash meanwhile leaves a part of it."""
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Around a library that writes into `folder` and has errors of its own for a disk that refuses: raises the disk's
    OSError in their place, if it is still the disk that refuses.
    """
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if (refused := _refusal(folder)) is not None:
            raise refused from error
        raise


def _refusal(folder: Path) -> OSError | None:
    """The disk's error when something is written into `folder`; None if there is none, or it is not the disk's."""
    probe = folder / f".probe.{os.getpid()}.tmp"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(1 << 16))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error if error.errno in DISK else None
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return None


def disk_fault(error: OSError, folder: Path) -> str | None:
    """ "<file>: cannot be written (No space left on device)", or that `folder` is gone; None if it is no fault of the
    disk's.
    """
    if error.errno in DISK:
        return f"{error.filename or folder}: cannot be written ({error.strerror})"
    if error.errno == errno.ENOENT and not folder.is_dir():
        return f"{folder}: is gone; is its disk there?"
    return None


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hexadecimal; read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The file's value; None if it is absent or not JSON (a machine's crash may leave anything)."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
