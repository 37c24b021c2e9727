"""TLS that checks whom it talks to, for every client of AWS, those that fetch credentials included.

aiobotocore takes botocore's TLS context, which leaves the host name unchecked because urllib3 checks it afterwards; and
behind a proxy it makes no context at all, so that aiohttp checks nothing. Either would let the holder of some
certificate answer as KMS or STS, and read plaintext keys.
"""

import ssl
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.config import Config


class VerifyingSession(AIOHTTPSession):  # type: ignore[misc]  # untyped
    """aiobotocore's session, with certificate and host name checked, behind a proxy as well."""

    def _get_ssl_context(self) -> ssl.SSLContext:
        context: ssl.SSLContext = super()._get_ssl_context()
        context.check_hostname = True
        return context

    def _create_connector(self, proxy_url: str | None) -> Any:
        # The context is for AWS at the other end of the tunnel; the SDK makes it only where there is no proxy.
        return super()._create_connector(None)


class VerifyingConfig(AioConfig):  # type: ignore[misc]  # untyped
    """A client's configuration with that session, which survives being merged with another."""

    def __init__(self, connector_args: dict[str, object] | None = None, **options: object) -> None:
        super().__init__(connector_args, http_session_cls=VerifyingSession, **options)

    def merge(self, other_config: Config) -> "VerifyingConfig":
        """See botocore's Config: what the other says goes first."""
        return VerifyingConfig(
            self.connector_args, **{**self._user_provided_options, **other_config._user_provided_options}
        )
