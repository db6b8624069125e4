"""One file in a session (XEP-0234): what the sender and the receiver do with the stream, and which names are safe."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .elements import File, Print
from .errors import SessionEnded, TransferFailed, XtlsError
from .stream import SessionInfo

if TYPE_CHECKING:
    from .plugin import Incoming, XtlsPlugin

CHUNK = 65536


@dataclass(frozen=True)
class Received:
    """A file that was received whole."""

    path: Path
    size: int
    sha256: bytes
    info: SessionInfo


def safe_name(name: str) -> str:
    """The last part of a path without anything that misleads people or programs."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    kept = "".join(c for c in last if unicodedata.category(c)[0] != "C" and unicodedata.category(c) not in ("Zl", "Zp"))
    kept = kept.strip().lstrip(".-").strip()
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
    return File(path.name, size, digest.digest(), date, range_offered=True)


async def send(plugin: XtlsPlugin, jid: str, path: Path, **options: Any) -> SessionInfo:
    """Sends a file. Raises `TransferFailed` if the receiver has not confirmed it."""
    offered = await asyncio.to_thread(describe, path)
    reader, writer, info = await plugin.connect(jid, file=offered, **options)
    connection = writer._connection
    assert info.file is not None
    left = offered.size - info.file.offset
    try:
        with open(path, "rb") as file:
            file.seek(info.file.offset)
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise OSError("the file became shorter")
                writer.write(chunk)
                left -= len(chunk)
                await writer.drain()
    except OSError as error:
        failure = TransferFailed(f"the file can no longer be read: {error}")
        connection.terminate("failed-application", "the file can no longer be read", failure)
        raise failure from error
    writer.write_eof()
    if await reader.read(1):
        failure = TransferFailed("data came where the receiver's confirmation is expected")
        connection.terminate("media-error", error=failure)
        raise failure
    try:
        await asyncio.shield(connection.ended)
    except SessionEnded as error:
        raise TransferFailed(str(error)) from error
    return info


async def receive(
    incoming: Incoming, directory: Path, expect: Sequence[Print] | None = None, max_size: int | None = None
) -> Received:
    """Receives the offered file whole, or leaves nothing."""
    offered = incoming.file
    if offered is None:
        incoming.decline()
        raise TransferFailed("the session has no file")
    if max_size is not None and offered.size > max_size:
        incoming.decline("the file is too large")
        raise TransferFailed("the file is too large")
    if shutil.disk_usage(directory).free < offered.size:
        incoming.decline("there is no room for the file")
        raise TransferFailed("there is no room for the file")
    reader, writer, info = await incoming.accept(expect=expect)
    connection = writer._connection
    digest, size = hashlib.sha256(), 0
    descriptor, temporary = tempfile.mkstemp(prefix=".xtls-", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as file:
            while chunk := await reader.read(CHUNK):
                size += len(chunk)
                if size > offered.size:
                    break
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        fault = None
        if size != offered.size:
            fault = "the file does not have the size that was offered: nothing was kept"
        elif offered.sha256 is not None and digest.digest() != offered.sha256:
            fault = "the file's hash is not the one offered: nothing was kept"
        if fault:
            failure = TransferFailed(fault)
            connection.terminate("media-error", fault, failure)
            raise failure
        path = _store(Path(temporary), directory, safe_name(offered.name))
    except OSError as error:
        failure = TransferFailed(f"the file cannot be stored: {error}")
        connection.terminate("media-error", "the file cannot be stored", failure)
        raise failure from error
    except XtlsError:
        raise
    finally:
        Path(temporary).unlink(missing_ok=True)
    writer.write_eof()
    connection.terminate("success")
    return Received(path, size, digest.digest(), info)


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
