"""One file of a session (XEP-0234): its description, which names are safe, and how a received one is stored."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import shutil
import tempfile
import unicodedata
from pathlib import Path

from .elements import File
from .errors import TransferFailed

CHUNK = 65536


def visible(text: str) -> str:
    """A text of a stranger for people, without characters that are invisible, or that change lines or the direction."""
    return "".join(c for c in text if unicodedata.category(c)[0] != "C" and unicodedata.category(c) not in ("Zl", "Zp"))


def safe_name(name: str) -> str:
    """The last part of a path without anything that misleads people or programs."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = visible(last).strip().lstrip(".-").strip()
    stem, dot, end = kept.rpartition(".")
    while len(kept.encode()) > 200:
        stem = stem[:-1] if dot else stem
        kept = f"{stem}{dot}{end}" if dot and stem else kept[:-1]
    return kept or "file"


def describe(path: Path) -> File:
    """Reads a file for its offer."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = 0
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
        changed = os.fstat(file.fileno()).st_mtime
    date = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return File(safe_name(path.name), size, digest.digest(), date, range_offered=True)


def why_not(offered: File, directory: Path, max_size: int | None = None) -> str | None:
    """Why a file cannot be taken; None if it can."""
    if max_size is not None and offered.size > max_size:
        return "the file is too large"
    if shutil.disk_usage(directory).free < offered.size:
        return "there is no room for the file"
    return None


class Sink:
    """A file that is being received. It gets its name when it is whole; until then, and after a failure, nothing has it.

    Every method but `close` raises `OSError` if the disk does not do it.
    """

    def __init__(self, offered: File, directory: Path):
        self._offered, self._directory = offered, directory
        self._digest, self.size = hashlib.sha256(), 0
        descriptor, name = tempfile.mkstemp(prefix=".xtls-", dir=directory)
        self._temporary = Path(name)
        self._file = os.fdopen(descriptor, "wb")

    def write(self, data: bytes) -> None:
        """Takes bytes. Raises `TransferFailed` if they are more than were offered."""
        self.size += len(data)
        if self.size > self._offered.size:
            self._fault("the file does not have the size that was offered: nothing was kept")
        self._digest.update(data)
        self._file.write(data)

    def finish(self) -> Path:
        """Stores the file under a safe name that nothing has yet. Raises `TransferFailed` if it is not the offered one."""
        if self.size != self._offered.size:
            self._fault("the file does not have the size that was offered: nothing was kept")
        if self._offered.sha256 is not None and self.sha256 != self._offered.sha256:
            self._fault("the file's hash is not the one offered: nothing was kept")
        self._file.flush()
        os.fsync(self._file.fileno())
        path = _store(self._temporary, self._directory, safe_name(self._offered.name))
        self.close()
        return path

    def close(self) -> None:
        """Removes an unfinished file. It may be called again, and never raises."""
        # Closing writes what is still in the buffer. A disk that is full refuses this as it has refused the write.
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @property
    def sha256(self) -> bytes:
        return self._digest.digest()

    def _fault(self, fault: str) -> None:
        self.close()
        raise TransferFailed(fault)


def _store(temporary: Path, directory: Path, name: str) -> Path:
    """Gives a file a name that nothing has."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(temporary, 0o666 & ~umask)
    stem, dot, end = name.rpartition(".")
    for count in range(10_000):
        number = f" ({count})" if count else ""
        path = directory / (f"{stem}{number}.{end}" if dot and stem else f"{name}{number}")
        try:
            os.link(temporary, path)
        except FileExistsError:
            continue
        return path
    raise FileExistsError("too many files have this name")
