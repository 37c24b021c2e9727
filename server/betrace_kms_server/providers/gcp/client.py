"""The SDK's client of Cloud KMS over a channel of ours: bounded in time and size, and with the daemon's credentials.

The channel lives in the event loop of the server. Credentials are not given to gRPC, which would ask for them in a
thread of its own and report their failure as an outage of Cloud KMS: each call has its headers from `authorization`.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc

from betrace_kms_server.providers.gcp.credentials import GoogleCredentials, Metadata
from betrace_kms_server.providers.gcp.sdk import (
    KeyManagementServiceAsyncClient,
    KeyManagementServiceGrpcAsyncIOTransport,
    api_errors,
)

A = TypeVar("A")

HOST = "cloudkms.googleapis.com"
_REASON = "x-goog-request-reason"
_OPTIONS: Sequence[tuple[str, Any]] = (
    # gRPC's own bound is two minutes, for which all calls would fail after a long outage.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A connection that a firewall forgot is noticed in 40 seconds, while calls wait for it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 * 1024),
)
_PAUSES = (0.1, 0.2, 0.4)
"""Seconds before a call is repeated that found no connection or a server that is restarted (UNAVAILABLE).

The SDK's own retries keep what failed, and so the request with its key, until the next collection of garbage.
"""

Options = Mapping[str, Any]
Call = Callable[[KeyManagementServiceAsyncClient, Options], Awaitable[A]]
"""Makes one call of the SDK, with the options that it is given."""


class CloudKms:
    """One client. A context manager. Without `credentials`, it is one of an emulator, in the clear."""

    def __init__(self, endpoint: str | None, credentials: GoogleCredentials | None) -> None:
        self._host = urlsplit(endpoint).netloc if endpoint else HOST
        self._credentials = credentials
        self._channel: grpc.aio.Channel | None = None
        self._client: KeyManagementServiceAsyncClient | None = None

    async def __aenter__(self) -> "CloudKms":
        if self._credentials is None:
            self._channel = grpc.aio.insecure_channel(self._host, options=_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(self._host, grpc.ssl_channel_credentials(), options=_OPTIONS)
        transport = KeyManagementServiceGrpcAsyncIOTransport(host=self._host, channel=self._channel)
        # The SDK put an interceptor there, which logs requests. Through it, gRPC leaves a cycle behind each call: a key
        # would stay in memory until the next collection of garbage, and the process would end two seconds late.
        self._channel._unary_unary_interceptors.clear()  # type: ignore[attr-defined]
        self._client = KeyManagementServiceAsyncClient(transport=transport)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._channel is not None:
            await self._channel.close()
        if self._credentials is not None:
            await self._credentials.close()
        self._channel = self._client = None

    @property
    def credential_attempts(self) -> Mapping[str, int]:
        """How many attempts to obtain credentials ended so."""
        return {} if self._credentials is None else dict(self._credentials.attempts)

    async def authorization(self) -> Metadata:
        """Return the headers of a call. Raises CredentialsUnavailable."""
        return () if self._credentials is None else await self._credentials.headers()

    def refused(self, headers: Metadata) -> bool:
        """Report that Cloud KMS does not accept a token. Returns whether another may be obtained."""
        return self._credentials is not None and self._credentials.refused(headers)

    async def ask(self, call: Call[A], *, headers: Metadata, reason: str, seconds: float) -> A:
        """Make one call. `reason` is written to Cloud Audit Logs, where those are on. Raises what the SDK raises."""
        if self._client is None:
            raise RuntimeError("the client is not open")
        options = {"timeout": seconds, "retry": None, "metadata": (*headers, (_REASON, reason))}
        for pause in _PAUSES:
            with suppress(api_errors.ServiceUnavailable):
                return await call(self._client, options)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311  # so that daemons do not try in step
        return await call(self._client, options)
