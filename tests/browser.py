"""A real browser for tests: headless Chromium, driven by the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/ has the methods and events.
"""

import asyncio
import base64
import itertools
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp

NAMES = ("chromium-headless-shell", "chromium", "google-chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",  # containers give it no namespaces; it opens nothing but our page
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
_SECONDS = 30.0


class Browser:
    """A tab.

    `requests` has the URLs that it asked for, `complaints` what it logs of the page: errors, and what the content
    security policy blocked.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self._socket = socket
        self._loaded = asyncio.Event()
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}

    async def call(self, method: str, **parameters: object) -> Mapping[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        async with asyncio.timeout(_SECONDS):
            answer = await self._answers[number]
        assert "error" not in answer, f"{method}: {answer}"
        result: Mapping[str, Any] = answer["result"]
        return result

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it is loaded."""
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(_SECONDS):
            await self._loaded.wait()

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        async with asyncio.timeout(_SECONDS):
            while not await self.evaluate(expression):  # noqa: ASYNC110  # the page has no event that says so
                await asyncio.sleep(0.1)

    async def show(self, width: int, scheme: Literal["light", "dark"] = "light", height: int = 1000) -> None:
        """Make the page so wide, in pixels of CSS, and let its reader prefer a color scheme."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    async def picture(self) -> bytes:
        """Return what is in view as PNG."""
        result = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(result["data"])

    async def listen(self) -> None:
        """Take answers and events until the browser ends."""
        async for message in self._socket:
            found = message.json()
            if "id" in found:
                self._answers.pop(found["id"]).set_result(found)
            elif found["method"] == "Network.requestWillBeSent":
                self.requests.append(found["params"]["request"]["url"])
            elif found["method"] == "Page.loadEventFired":
                self._loaded.set()
            elif found["method"] == "Log.entryAdded":
                self.complaints.append(found["params"]["entry"]["text"])
            elif found["method"] == "Runtime.exceptionThrown":
                self.complaints.append(str(found["params"]["exceptionDetails"]))


@asynccontextmanager
async def browsing(program: str) -> AsyncIterator[Browser]:
    """Run a browser with an empty profile, and give a tab of it."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        process = await asyncio.create_subprocess_exec(
            program, *_FLAGS, f"--user-data-dir={folder}", "about:blank",
            stderr=asyncio.subprocess.PIPE, env={"HOME": folder, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        try:
            port = await _port(process)
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                async with session.get("/json/list") as answer:
                    (tab,) = [each for each in await answer.json() if each["type"] == "page"]
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=2**26) as socket:
                    browser = Browser(socket)
                    listening = asyncio.create_task(browser.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await browser.call(f"{domain}.enable")
                    yield browser
            await listening
        finally:
            process.kill()
            await process.wait()


async def _port(process: asyncio.subprocess.Process) -> str:
    """Return the port of the protocol, which the browser writes to stderr."""
    assert process.stderr is not None
    lines = []
    async with asyncio.timeout(_SECONDS):
        async for line in process.stderr:
            lines.append(line.decode(errors="replace"))
            if "DevTools listening on ws://" in lines[-1]:
                return lines[-1].split("ws://")[1].split("/")[0].rpartition(":")[2]
    raise AssertionError(f"the browser did not start: {''.join(lines)}")
