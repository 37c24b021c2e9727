"""keys."""

from base64 import b64encode
from pathlib import Path

import click
from betrace_kms_evidence import ALGORITHM

from betrace_kms_client.cli.options import as_json, calling, client_options, output_option, tenant_option
from betrace_kms_client.cli.outputs import write


@click.command(
    epilog="""\b
Examples:
  betrace-kms keys --tenant acme
  betrace-kms keys --tenant acme --jwks --output acme.jwks.json
  betrace-kms verify --jwks acme.jwks.json traces.signed.jsonl      # needs no daemon
"""
)
@tenant_option
@click.option("--jwks", is_flag=True, help="Write a JSON Web Key Set (RFC 7517, RFC 8037), which verify takes.")
@output_option
@client_options
def keys(tenant_id: str, jwks: bool, output: Path | None, addr: str, timeout: float) -> None:
    """List every public key that a tenant ever had, oldest first; keys in base64, times in RFC 3339."""
    with calling(addr, timeout) as client:
        found = client.get_public_keys(tenant_id)
    if jwks:
        write(found.jwks.rstrip("\n").encode() + b"\n", output)
        return
    shown = [
        {
            "keyId": key.key_id,
            "publicKey": b64encode(key.raw).decode(),
            "algorithm": ALGORITHM,
            "status": key.status,
            "createTime": key.create_time or None,
            "rotateTime": key.rotate_time or None,
            "revokeTime": key.revoke_time or None,
        }
        for key in found.keys
    ]
    write(as_json({"tenantId": tenant_id, "keys": shown}), output)
