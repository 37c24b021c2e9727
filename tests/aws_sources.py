"""An HTTP server in the place of STS, IMDS, KMS or a proxy, which a test scripts and which notes what it was asked."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Reply = bytes | None
"""The whole HTTP answer; None leaves the caller without one."""


def reply(body: str, *, status: int = 200, kind: str = "application/json", headers: str = "") -> bytes:
    """Return an HTTP answer."""
    content = body.encode()
    head = f"HTTP/1.1 {status} Scripted\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n{headers}"
    return f"{head}connection: close\r\n\r\n".encode() + content


@dataclass
class Source:
    """A running server. `answer` gets the request line, the head and the body."""

    url: str
    answer: Callable[[str, str, bytes], Reply | Awaitable[Reply]]
    requests: list[str] = field(default_factory=list)
    access_keys: list[str] = field(default_factory=list)
    """The id of the access key that signed each request."""
    asked: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def scripted_source(answer: Callable[[str, str, bytes], Reply]) -> AsyncIterator[Source]:
    """Run a server on 127.0.0.1 that answers so."""
    source = Source("", answer)
    open_connections = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_connections.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1])) if length else b""
            line = head.split("\r\n")[0]
            source.requests.append(line)
            source.asked.set()
            if signed := re.search(r"Credential=([^/]+)/", head):
                source.access_keys.append(signed[1])
            answered = source.answer(line, head, body)
            if answered is None:
                await asyncio.Event().wait()
            else:
                writer.write(answered)  # type: ignore[arg-type]
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            open_connections.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    source.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield source
    finally:
        server.close()
        for task in list(open_connections):
            task.cancel()
        if open_connections:
            await asyncio.wait(open_connections)
