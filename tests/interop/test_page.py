"""The page at `/` in a real browser, on a real daemon with traffic."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import grpc
import pytest
import pytest_asyncio
from betrace.kms.v1 import admin_pb2
from betrace.kms.v1.admin_pb2_grpc import KmsAdminServiceStub
from betrace.kms.v1.span_pb2 import ComplianceSpan
from betrace_kms_client import AsyncKmsClient

from tests.browser import NAMES, Browser, browsing
from tests.daemon import running
from tests.interop.tools import tool

SPAN = ComplianceSpan(trace_id=b"t" * 16, span_id=b"s" * 8, name="user.login")
pytestmark = pytest.mark.asyncio(loop_scope="module")

TENANT = "a-tenant-with-a-name"
"""Must be on no page."""
LOW_CONTRAST = """
(() => {
  const luminance = (color) => color.match(/[\\d.]+/g).slice(0, 3)
    .map((part) => part / 255).map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ground = (node) => {
    const color = getComputedStyle(node).backgroundColor;
    return color.endsWith(", 0)") && node.parentElement ? ground(node.parentElement) : color;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  for (let node; (node = texts.nextNode()); ) {
    const parent = node.parentElement;
    if (!node.textContent.trim() || !parent.checkVisibility() || parent.closest("script, template, noscript")) continue;
    const [dark, light] = [getComputedStyle(parent).color, ground(parent)].map(luminance).sort((a, b) => a - b);
    if ((light + 0.05) / (dark + 0.05) < 4.5) found.push(node.textContent);
  }
  return found;
})()
"""
"""Texts with less contrast than WCAG 2.2 asks for at level AA (1.4.3)."""


@dataclass
class Shown:
    """A browser that shows the page of a daemon, and what stops that daemon."""

    browser: Browser
    origin: str
    data_dir: Path
    stop: AsyncExitStack

    async def text(self) -> str:
        """Return what a reader sees."""
        return str(await self.browser.evaluate("document.body.innerText"))

    async def admin(self, method: str, request: object) -> None:
        """Make a call of the admin service."""
        async with grpc.aio.insecure_channel(f"unix:{self.data_dir}/admin.sock") as channel:
            await getattr(KmsAdminServiceStub(channel), method)(request, timeout=20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shown(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shown]:
    """Open the page of a daemon that was called."""
    data_dir = tmp_path_factory.mktemp("page") / "data"
    async with AsyncExitStack() as stop, browsing(tool(*NAMES)) as browser:
        daemon = await stop.enter_async_context(running(data_dir))
        async with AsyncKmsClient(daemon.addresses[0]) as client:
            for _ in range(10):
                await client.sign_span(TENANT, SPAN)
                await client.encrypt(TENANT, b"payload")
        origin = f"http://{daemon.ops_address}"
        await browser.show(1280)
        await browser.open(f"{origin}/")
        await browser.until("document.querySelectorAll('#calls .value small').length >= 4")
        yield Shown(browser, origin, data_dir, stop)


async def test_the_page_shows_what_the_status_says(shown: Shown) -> None:
    """State, calls, caches, latency, cost and rotation, by name and with units."""
    text = await shown.text()
    assert "Serving" in text
    assert "Serving | betrace-kms" == await shown.browser.evaluate("document.title")
    figures = ["Hit rate, last minute\n\n90.0%", "GenerateDataKey", "Decrypt", "With the cache\n$", "last good run"]
    assert [] == [figure for figure in figures if figure not in text]
    rows = await shown.browser.evaluate("[...document.querySelectorAll('#caches tr')].map((row) => row.innerText)")
    assert [
        ["encryption", "1", "1,000", "9", "1", "90.0 %", "1 h 0 min", "\u2013"],
        ["signing", "1", "1,000", "9", "1", "90.0 %", "1 h 0 min", "\u2013"],
    ] == [row.split("\t") for row in rows][:2]


async def test_the_page_shows_no_tenant(shown: Shown) -> None:
    """Whoever stands behind the operator learns counts, and no names of customers."""
    assert TENANT not in await shown.browser.evaluate("document.documentElement.outerHTML")


async def test_the_page_asks_its_own_origin_alone(shown: Shown) -> None:
    """The browser made no other request, and had no complaint about the page."""
    asked = {urlsplit(url)._replace(path="", query="").geturl() for url in shown.browser.requests}
    assert ({shown.origin}, []) == ({url for url in asked if not url.startswith("data:")}, shown.browser.complaints)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_page_can_be_read(shown: Shown, scheme: Literal["light", "dark"]) -> None:
    """On a telephone and on a desk: no sideways scrolling, and text has the contrast of WCAG 2.2, level AA."""
    for width in (375, 768, 1280):
        await shown.browser.show(width, scheme)
        assert (width, []) == (
            await shown.browser.evaluate("document.documentElement.scrollWidth"),
            await shown.browser.evaluate(LOW_CONTRAST),
        )


async def test_what_an_operator_wrote_is_text(shown: Shown) -> None:
    """The reason of an emergency stop is shown as it is, whatever markup it holds."""
    reason = "<img src=x onerror=alert(1)>"
    await shown.admin("Lock", admin_pb2.LockRequest(reason=reason))
    await shown.browser.until("document.title.startsWith('Emergency stop')")
    assert reason in await shown.text()
    await shown.admin("Unlock", admin_pb2.UnlockRequest())
    await shown.browser.until("document.title.startsWith('Serving')")
    assert [] == shown.browser.complaints


async def test_a_daemon_that_is_gone_is_not_shown_as_it_was(shown: Shown) -> None:
    """The page says so, keeps the last figures, and greys them."""
    await shown.stop.aclose()
    await shown.browser.until("document.title.startsWith('No answer')")
    text = await shown.text()
    assert "The daemon has not answered since" in text
    assert "90.0 %" in text
    assert "0.55" == await shown.browser.evaluate("getComputedStyle(document.querySelector('main')).opacity")
