"""data-key, encrypt, decrypt."""

from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import click

from betrace_kms_client import files
from betrace_kms_client.cli.json_lines import convert, opening, sealing
from betrace_kms_client.cli.options import (
    as_json,
    calling,
    client_options,
    context_option,
    json_lines_options,
    parse_context,
    payload_options,
    tenant_option,
)
from betrace_kms_client.cli.outputs import write, writing
from betrace_kms_client.cli.progress import progress_of
from betrace_kms_client.cli.streams import read_whole
from betrace_kms_client.records import Selection
from betrace_kms_client.results import Ciphertext

_WHOLE_BYTES = 4 * 1024 * 1024
"""What a daemon takes unless configured otherwise (kms.server.max-message-bytes)."""
_WHOLE_MESSAGE_BYTES = _WHOLE_BYTES + 128 * 1024
"""A message of that much content, and its header and tags."""
_SPECS = {"AES_256": 32, "AES_128": 16}


@click.command(
    "data-key",
    epilog="""\b
Examples:
  betrace-kms data-key --tenant acme
  betrace-kms data-key --tenant acme --context table=users --plaintext-out key.bin --wrapped-out key.wrapped
  betrace-kms decrypt --tenant acme --context table=users key.wrapped --output key.bin
""",
)
@tenant_option
@click.option("--spec", type=click.Choice(list(_SPECS)), default="AES_256", show_default=True, help="Length by name.")
@click.option("--bytes", "number_of_bytes", type=click.IntRange(1, 1024), help="Length in bytes, instead of --spec.")
@context_option
@click.option("--fresh", is_flag=True, help="A key that no other call gets, straight from KMS.")
@click.option(
    "--plaintext-out", type=click.Path(dir_okay=False, path_type=Path), help="Write the key to this file (0600)."
)
@click.option(
    "--wrapped-out", type=click.Path(dir_okay=False, path_type=Path), help="Write the wrapped key to this file."
)
@client_options
def data_key(
    tenant_id: str,
    spec: str,
    number_of_bytes: int | None,
    context: Mapping[str, str],
    fresh: bool,
    plaintext_out: Path | None,
    wrapped_out: Path | None,
    addr: str,
    timeout: float,
) -> None:
    """Get a data key.

    Prints JSON with the key and the wrapped key in base64; a part that goes to a file is left out of it.
    """
    with calling(addr, timeout) as client:
        key = client.generate_data_key(tenant_id, number_of_bytes or _SPECS[spec], context, fresh=fresh)
    shown: dict[str, str | bytes] = {"keyId": key.key_id}
    for name, value, output in (
        ("ciphertextBlob", key.ciphertext_blob, wrapped_out),
        ("plaintext", key.plaintext, plaintext_out),
    ):
        if output is None:
            shown[name] = value
        else:
            write(value, output)
    write(as_json(shown), None)


@click.command(
    epilog="""\b
Examples:
  betrace-kms encrypt --tenant acme --context field=email message.txt --output message.enc
  echo "hello" | betrace-kms encrypt --tenant acme | betrace-kms decrypt --tenant acme
  betrace-kms encrypt --tenant acme --jsonl --fields email,ssn --context record=@id < users.jsonl > sealed.jsonl
"""
)
@payload_options
@json_lines_options
def encrypt(
    source: BinaryIO,
    tenant_id: str,
    context: Mapping[str, str],
    output: Path | None,
    as_json_: bool,
    in_lines: bool,
    fields: str,
    addr: str,
    timeout: float,
) -> None:
    """Seal a file, or stdin, into an AWS Encryption SDK message.

    More than 4 MiB are sealed here, of any size, under a key that the daemon gives. With --jsonl, seal fields of JSON
    lines instead.
    """
    selection = _selection(in_lines, fields, context, as_json_)
    if selection is not None:
        with calling(addr, timeout) as client:
            convert(source, output, selection, sealing(client, tenant_id))
        return
    content = source.read(_WHOLE_BYTES + 1)
    with calling(addr, timeout) as client:
        if len(content) <= _WHOLE_BYTES:
            _write_ciphertext(client.encrypt(tenant_id, content, context), output, as_json_)
            return
        _refuse_json(as_json_)
        with writing(output, binary=True) as message, progress_of(source, len(content)) as progress:
            files.seal(client.generate_message_key(tenant_id, context), content, source, message, progress)


@click.command(
    epilog="""\b
Examples:
  betrace-kms decrypt --tenant acme --context field=email message.enc
  betrace-kms decrypt --tenant acme key.wrapped --output key.bin
  betrace-kms decrypt --tenant acme --jsonl --fields email --context record=@id < sealed.jsonl
"""
)
@payload_options
@json_lines_options
@click.option(
    "--stream",
    is_flag=True,
    help="Write a large content to stdout while the rest is not verified yet: if the command fails, throw away what it"
    " wrote.",
)
def decrypt(
    source: BinaryIO,
    tenant_id: str,
    context: Mapping[str, str],
    output: Path | None,
    as_json_: bool,
    in_lines: bool,
    fields: str,
    stream: bool,
    addr: str,
    timeout: float,
) -> None:
    """Open what encrypt or an AWS Encryption SDK sealed, or unwrap a wrapped data key.

    More than 4 MiB are opened here, under a key that the daemon gives. With --jsonl, open fields of JSON lines instead.
    """
    selection = _selection(in_lines, fields, context, as_json_ or stream)
    if selection is not None:
        with calling(addr, timeout) as client:
            convert(source, output, selection, opening(client, tenant_id))
        return
    content = source.read(_WHOLE_MESSAGE_BYTES + 1)
    with calling(addr, timeout) as client, files.refusals():
        start = files.StartReader().add(content) if len(content) > _WHOLE_MESSAGE_BYTES else None
        if start is None or start.is_for_decrypt:
            if start is not None:
                content = files.read_for_decrypt(start, source)
            opened = client.decrypt(tenant_id, content, context)
            shown = as_json({"plaintext": opened.plaintext, "keyId": opened.key_id}) if as_json_ else opened.plaintext
            write(shown, output)
            return
        _refuse_json(as_json_)
        if output is None and not stream:
            raise click.UsageError(
                "the content is large: add --output FILE, which appears when all of it has verified, or --stream"
            )
        key = client.open_message_key(tenant_id, start.header, context)
        with writing(output) as plaintext, progress_of(source, len(start.header)) as progress:
            files.open_to(start, key, source, plaintext, progress)


@click.command(
    epilog="""\b
Examples:
  betrace-kms reencrypt --tenant acme --context field=email old.enc --output new.enc
  betrace-kms reencrypt --tenant acme key.wrapped --output key.wrapped.new
"""
)
@payload_options
@click.option(
    "--destination-context",
    multiple=True,
    metavar="NAME=VALUE",
    callback=parse_context,
    help="A pair of the new encryption context; the old one stays if none is given.",
)
def reencrypt(
    source: BinaryIO,
    tenant_id: str,
    context: Mapping[str, str],
    destination_context: Mapping[str, str],
    output: Path | None,
    as_json_: bool,
    addr: str,
    timeout: float,
) -> None:
    """Seal a ciphertext again under today's keys, without seeing what it holds."""
    with calling(addr, timeout) as client:
        sealed = client.re_encrypt(tenant_id, read_whole(source), context, destination_context or None)
    _write_ciphertext(sealed, output, as_json_)


def _selection(in_lines: bool, fields: str, context: Mapping[str, str], whole: bool) -> Selection | None:
    """Return which fields --jsonl is for, or None without it; `whole` is whether an option has no sense with it."""
    if in_lines != bool(fields):
        raise click.UsageError("--jsonl and --fields go together: --jsonl --fields email,ssn")
    if not in_lines:
        return None
    if whole:
        raise click.UsageError("--json and --stream are for one payload: leave them out with --jsonl")
    try:
        return Selection(fields.split(","), context)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _refuse_json(in_json: bool) -> None:
    if in_json:
        raise click.UsageError("the result is too large for --json: leave it out")


def _write_ciphertext(sealed: Ciphertext, output: Path | None, in_json: bool) -> None:
    if in_json:
        write(as_json({"ciphertextBlob": sealed.ciphertext_blob, "keyId": sealed.key_id}), output)
    else:
        write(sealed.ciphertext_blob, output, binary=True)
