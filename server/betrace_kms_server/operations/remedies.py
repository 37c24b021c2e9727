"""What an operator does next about an error: the commands, and the names that callers must not learn.

An error's own message is for callers and says what is wrong; this adds only what it lacks. What is about a service, its
provider knows.
"""

from collections.abc import Callable, Mapping

from betrace_kms_server.core.errors import AccessDenied, KmsError, Overloaded, StoreUnavailable
from betrace_kms_server.host.process import DESCRIPTORS_STEP
from betrace_kms_server.providers.protocol import KeyProvider


def remedy(error: KmsError, provider: KeyProvider) -> str:
    """Return an operator's next step."""
    if (known := REMEDIES.get(type(error))) is not None:
        return known(error)
    return provider.remedy(error) or f"see docs/troubleshooting.md#{error.reason.lower()}"


def operator_message(error: KmsError) -> str:
    """Return the error's message, and whom the service takes the daemon for where it said so."""
    principal = error.principal if isinstance(error, AccessDenied) else None
    return f"{error.message}; the daemon is {principal}" if principal else error.message


def _add_capacity(_error: KmsError) -> str:
    return (
        "validate again in a minute; if it stays, raise kms.cache.max-size, add daemons, or let callers share"
        " encryption contexts"
    )


def _restore_store(error: KmsError) -> str:
    match error.place if isinstance(error, StoreUnavailable) else "volume":
        case "table":
            return (
                "check the table (kms.store.table or kms.branch-keys.table) and the daemon's permissions on it: see"
                " docs/dynamodb.md"
            )
        case "process":
            return f"{DESCRIPTORS_STEP}; kms_rpc_requests_total and process_open_fds show what uses them"
    return "check the volume of kms.data-dir in the daemon's place (df, mount): mounted, writable, not full"


REMEDIES: Mapping[type[KmsError], Callable[[KmsError], str]] = {
    Overloaded: _add_capacity,
    StoreUnavailable: _restore_store,
}
"""For errors of the daemon and of its store, whatever the provider is."""
