"""The page for people at `/`: one HTML document, whose script reads the status and metrics that this port serves.

The document is the same for every daemon and holds nothing of it. It loads nothing from elsewhere: its content security
policy names its one script and its one style by their hashes, and lets the script ask its own origin alone.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

_SCRIPTS = ("figures.js", "plots.js", "page.js")


@dataclass(frozen=True, slots=True)
class Page:
    """The document in UTF-8, and the headers that it is served with."""

    body: bytes
    headers: Mapping[str, str]


def load_page() -> Page:
    """Put the document together from the files beside this module."""
    style = _read("page.css")
    script = "\n".join(map(_read, _SCRIPTS))
    document = _read("page.html").replace("<!-- page.css -->", style).replace("<!-- scripts -->", script)
    policy = {
        "default-src": "'none'",
        "script-src": _source(script),
        "style-src": _source(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return Page(document.encode(), headers)


def _read(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")


def _source(inline: str) -> str:
    """Return how a content security policy names an inline script or style (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
