"""The page at `/`: what its headers let it do, and what its document may not hold."""

import base64
import hashlib
import re
from collections.abc import Mapping

import pytest
from betrace_kms_server.operations.page import load_page

PAGE = load_page().body.decode()
ATTRIBUTES = re.findall(r"""<[^>]*?\s([a-z-]+)=["']""", re.sub(r"(?s)<(style|script).*?</\1>", "", PAGE))


def policy() -> Mapping[str, str]:
    """Return the directives of the content security policy."""
    directives = load_page().headers["Content-Security-Policy"].split("; ")
    return {name: value for name, _, value in (directive.partition(" ") for directive in directives)}


def hash_of(tag: str) -> str:
    """Return the hash of the document's one element of a name, as a policy writes it."""
    (content,) = re.findall(rf"(?s)<{tag}(?: [^>]*)?>(.*?)</{tag}>", PAGE)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def test_the_policy_allows_the_script_the_style_and_its_own_origin() -> None:
    """Nothing else runs, is loaded, is asked, or may show the page inside of it."""
    assert {
        "default-src": "'none'",
        "script-src": hash_of("script"),
        "style-src": hash_of("style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    } == policy()


def test_the_document_is_whole() -> None:
    """Every part was put in its place."""
    assert [] == re.findall(r"<!-- .*? -->", PAGE)


def test_nothing_comes_from_elsewhere() -> None:
    """No address of another server, but for the names of XML namespaces."""
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^'\"\s]*", PAGE))
    assert {"http://www.w3.org/2000/svg"} == addresses


@pytest.mark.parametrize("forbidden", ["style", "onclick", "onload", "onerror", "src", "srcset", "action"])
def test_no_element_has_an_attribute_that_runs_or_loads(forbidden: str) -> None:
    """Inline handlers and styles would be blocked; nothing else is loaded."""
    assert forbidden not in ATTRIBUTES


@pytest.mark.parametrize("forbidden", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("])
def test_no_text_becomes_markup(forbidden: str) -> None:
    """What the daemon says is shown as text, whatever is in it."""
    assert forbidden not in PAGE


def test_other_headers_keep_it_to_itself() -> None:
    """Its type is not guessed, where it was is told to nobody, and other pages cannot reach it."""
    assert {
        "Content-Type": "text/html; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
    } == {name: value for name, value in load_page().headers.items() if name != "Content-Security-Policy"}
