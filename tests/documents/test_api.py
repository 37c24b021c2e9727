"""docs/api.md is what the protos say."""

import re

from betrace.kms.v1 import admin_pb2, key_management_pb2, span_pb2

from tests.documents.api import DOCUMENT, api_document


def test_the_document_is_what_the_protos_say() -> None:
    """A comment, field or call that changed is in the document, too."""
    assert api_document() == DOCUMENT.read_text("utf-8"), "docs/api.md is stale: run make api-docs and commit it"


def test_every_call_message_and_value_has_its_place() -> None:
    """Each has a heading or a row, with words of its own."""
    text = DOCUMENT.read_text("utf-8")
    for module in (key_management_pb2, span_pb2, admin_pb2):
        descriptor = module.DESCRIPTOR
        names = [*descriptor.message_types_by_name, *descriptor.enum_types_by_name]
        names += [method.name for service in descriptor.services_by_name.values() for method in service.methods]
        for name in names:
            assert f"\n### {name}\n\n{name} " in text, f"{name} has no heading, or its comment does not begin with it"
    assert [] == re.findall(r"^\| `.* \|  \|$", text, re.MULTILINE), "a field or value has no comment"
