"""One file in a session (XEP-0234): what the sender and the receiver do with the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fingerpost_core.elements import File, Print
from fingerpost_core.errors import SessionEnded, TransferFailed, XtlsError
from fingerpost_core.files import CHUNK, Sink, describe, why_not

from .stream import SessionInfo, XtlsWriter

if TYPE_CHECKING:
    from .plugin import Connection, Incoming, XtlsPlugin


@dataclass(frozen=True)
class Received:
    """A file that was received whole."""

    path: Path
    size: int
    sha256: bytes
    info: SessionInfo


async def send(plugin: XtlsPlugin, jid: str, path: Path, **options: Any) -> SessionInfo:
    """Sends a file. Raises `TransferFailed` if the receiver has not confirmed it."""
    offered = await asyncio.to_thread(describe, path)
    reader, writer, info = await plugin.connect(jid, file=offered, **options)
    connection = writer._connection
    try:
        await _send(connection, reader, writer, info, path, offered)
    except BaseException:
        # The caller gives up: without an end the session would stay for good.
        connection.terminate("cancel", error=XtlsError("cancelled"))
        raise
    return info


async def _send(
    connection: Connection, reader: asyncio.StreamReader, writer: XtlsWriter, info: SessionInfo, path: Path, offered: File
) -> None:
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


async def receive(
    incoming: Incoming, directory: Path, expect: Sequence[Print] | None = None, max_size: int | None = None
) -> Received:
    """Receives the offered file whole, or leaves nothing."""
    offered = incoming.file
    if offered is None:
        incoming.decline()
        raise TransferFailed("the session has no file")
    refusal = why_not(offered, directory, max_size)
    if refusal:
        incoming.decline(refusal)
        raise TransferFailed(refusal)
    reader, writer, info = await incoming.accept(expect=expect)
    connection = writer._connection
    try:
        sink = Sink(offered, directory)
        try:
            while chunk := await reader.read(CHUNK):
                sink.write(chunk)
            path = sink.finish()
        finally:
            sink.close()
    except TransferFailed as wrong:
        connection.terminate("media-error", str(wrong), wrong)
        raise
    except OSError as error:
        failure = TransferFailed(f"the file cannot be stored: {error}")
        connection.terminate("media-error", "the file cannot be stored", failure)
        raise failure from error
    except BaseException:
        # The caller gives up: without an end the session would stay for good.
        connection.terminate("cancel", error=XtlsError("cancelled"))
        raise
    writer.write_eof()
    connection.terminate("success")
    return Received(path, sink.size, sink.sha256, info)
