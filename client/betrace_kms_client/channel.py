"""How a client reaches the daemon: targets, channel arguments and retries."""

import json

from betrace.kms.v1 import key_management_pb2

DEFAULT_TARGET = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 10.0
"""Seconds that a call may take, its retries included: longer than the daemon waits for KMS, so that it can say why."""

MAX_ATTEMPTS = 3
INITIAL_BACKOFF, MAX_BACKOFF, BACKOFF_MULTIPLIER = 0.1, 1.0, 2
"""Seconds before the second attempt, at most, and by how much it grows: of gRPC's retries, and of items of batches."""

_SERVICE = key_management_pb2.DESCRIPTOR.services_by_name["KeyManagementService"].full_name

# Every call of this service may be repeated: at worst a second try makes a key or a ciphertext that no one uses. The
# admin service is not named here, so its calls are tried once. See gRFC A6, client retries. `waitForReady` is set by
# the clients, call by call: a daemon that was never there shall be an error at once. docs/clients.md has the JSON that
# other clients use.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": MAX_ATTEMPTS,
                "initialBackoff": f"{INITIAL_BACKOFF}s",
                "maxBackoff": f"{MAX_BACKOFF}s",
                "backoffMultiplier": BACKOFF_MULTIPLIER,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.max_receive_message_length", -1),  # what was sealed is larger than the payload that the daemon limits
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),  # the daemon is on this machine: trying costs next to nothing
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),  # the daemon is on this machine, whatever http_proxy says
)


def normalised(target: str) -> str:
    """Return gRPC's form of a target: `unix:/path` and `unix:///path` for a socket, or host:port.

    Of several addresses of kms.server.listen it is the first, without its options.
    """
    first = target.partition(",")[0].partition(";")[0].strip()
    return f"unix:{first}" if first.startswith(("/", "./")) else first or DEFAULT_TARGET
