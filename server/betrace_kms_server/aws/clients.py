"""Clients of AWS services, with bounds that botocore's defaults lack: those can wait for minutes."""

from contextlib import AbstractAsyncContextManager
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from betrace_kms_server.aws.credentials import DaemonCredentials

CONNECT_SECONDS, READ_SECONDS, ATTEMPTS, POOL_SIZE = 1, 2, 3, 50


def aws_client(
    service: str, region: str, endpoint: str | None, credentials: DaemonCredentials, *, attempts: int = ATTEMPTS
) -> AbstractAsyncContextManager[Any]:
    """Open a client that signs with `credentials`. Making the first of a process takes a quarter of a second."""
    session = AioSession()
    session._credentials = credentials  # as AioSession.set_credentials does, which takes only strings
    config = AioConfig(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL_SIZE,
        retries={"mode": "standard", "total_max_attempts": attempts},
    )
    client: AbstractAsyncContextManager[Any] = aioboto3.Session(botocore_session=session).client(
        service, region_name=region, endpoint_url=endpoint, config=config
    )
    return client
