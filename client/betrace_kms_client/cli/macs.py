"""mac, verify-mac."""

from typing import BinaryIO

import click

from betrace_kms_client.cli.options import as_json, calling, client_options, input_argument, json_option, tenant_option
from betrace_kms_client.cli.outputs import write
from betrace_kms_client.cli.streams import read_whole

NOT_VALID = 1

_purpose_option = click.option(
    "--purpose", required=True, help="What the MAC is for, such as users.email. Each purpose has a key of its own."
)


def _hexadecimal(ctx: click.Context, param: click.Parameter, value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise click.BadParameter("must be the hexadecimal digits that mac printed") from None


@click.command(
    epilog="""\b
Examples:
  printf alice@example.com | betrace-kms mac --tenant acme --purpose users.email
  printf alice@example.com | betrace-kms mac --tenant acme --purpose users.email --bits 12
"""
)
@input_argument
@tenant_option
@_purpose_option
@click.option("--bits", type=click.IntRange(8, 256), default=256, show_default=True, help="Length of the MAC.")
@json_option
@client_options
def mac(source: BinaryIO, tenant_id: str, purpose: str, bits: int, as_json_: bool, addr: str, timeout: float) -> None:
    """Compute the MAC of a file, or of stdin: a blind index.

    Every byte counts, also a newline at the end. Prints hexadecimal digits.
    """
    message = read_whole(source)
    with calling(addr, timeout) as client:
        made = client.generate_mac(tenant_id, purpose, message, bits)
    write(as_json({"mac": made.mac, "keyId": made.key_id}) if as_json_ else f"{made.mac.hex()}\n".encode(), None)


@click.command(
    "verify-mac",
    epilog="""\b
Examples:
  printf alice@example.com | betrace-kms verify-mac --tenant acme --purpose users.email --mac "$MAC"
""",
)
@input_argument
@tenant_option
@_purpose_option
@click.option("--mac", required=True, callback=_hexadecimal, help="The MAC, in hexadecimal digits.")
@click.option(
    "--bits", type=click.IntRange(128, 256), default=None, help="Length of the MAC, where it is no multiple of 8."
)
@json_option
@client_options
def verify_mac(
    source: BinaryIO,
    tenant_id: str,
    purpose: str,
    mac: bytes,
    bits: int | None,
    as_json_: bool,
    addr: str,
    timeout: float,
) -> None:
    """Tell whether a MAC of at least 128 bits is that of a file, or of stdin. The exit code is 1 if it is not."""
    message = read_whole(source)
    with calling(addr, timeout) as client:
        valid = client.verify_mac(tenant_id, purpose, message, mac, bits or 0)
    shown = as_json({"valid": valid}) if as_json_ else b"valid\n" if valid else b"not valid\n"
    write(shown, None)
    if not valid:
        raise SystemExit(NOT_VALID)
