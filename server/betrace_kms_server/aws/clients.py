"""Clients of AWS services: bounded, with the daemon's credentials, and deaf to answers that are not from AWS.

One client lives as long as its adapter: making the first costs a quarter of a second and stalls the loop. It needs no
credentials to be made and none of its own to work: `AwsCredentials` hands out what was obtained before a call, so a
client is never made anew for credentials that came late, expired or were replaced.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import aioboto3
from aiobotocore.session import get_session
from botocore.model import OperationModel

from betrace_kms_server.aws.credentials import AwsCredentials
from betrace_kms_server.aws.plaintexts import take_plaintext
from betrace_kms_server.aws.sdk_errors import NotFromAws
from betrace_kms_server.aws.tls import VerifyingConfig
from betrace_kms_server.core.call_slots import POOL_SIZE, RESERVED_CONNECTIONS

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS = 1, 2, 3

_SERVER_ERROR = 500


@asynccontextmanager
async def aws_client(
    service: Literal["dynamodb", "kms"],
    region: str,
    endpoint: str | None,
    credentials: AwsCredentials,
    *,
    attempts: int = ATTEMPTS,
) -> AsyncIterator[Any]:
    """Open a client. Ends an attempt to obtain credentials when it is closed."""
    session = get_session()
    session.register_component("credential_provider", credentials)
    config = VerifyingConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL_SIZE + RESERVED_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    sdk = aioboto3.Session(botocore_session=session)
    async with sdk.client(service, region_name=region, endpoint_url=endpoint, config=config) as client:
        client.meta.events.register(f"before-parse.{service}.*", _refuse_foreign_answers)
        if service == "kms":
            client.meta.events.register("before-parse.kms.*", take_plaintext)
        try:
            yield client
        finally:
            await credentials.close()


def credentials_of(client: object) -> AwsCredentials | None:
    """Return what `aws_client` gave to a client, or None for a client that was made elsewhere."""
    found = getattr(getattr(client, "_request_signer", None), "_credentials", None)
    return found if isinstance(found, AwsCredentials) else None


def _refuse_foreign_answers(operation_model: OperationModel, response_dict: Mapping[str, Any], **_: Any) -> None:
    """Raise NotFromAws for a page of a proxy: the SDK would read it as an empty answer, or as an unknown error.

    Every answer of AWS has a request id. Emulators of KMS may leave it out; from DynamoDB nothing less will do, because
    there an empty answer means that a tenant has no key. Server errors stay as they are, because the SDK retries them.
    """
    headers, status = response_dict["headers"], response_dict["status_code"]
    if status >= _SERVER_ERROR or "x-amzn-requestid" in headers:
        return
    if "json" not in headers.get("content-type", "") or operation_model.service_model.service_name == "dynamodb":
        raise NotFromAws(status)
