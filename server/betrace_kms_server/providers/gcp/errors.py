"""What the SDK's exceptions mean: one table for all calls of the provider, and one for the daemon's credentials.

The classes are those of google.api_core.exceptions, one for each gRPC status, and of google.auth.exceptions. Texts of
Cloud KMS are read only where one status has several causes, and none of them goes into a message.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from betrace_kms_server.core.errors import (
    AccessDenied,
    CredentialsUnavailable,
    DoesNotOpen,
    KmsError,
    KmsUnreachable,
    MasterKeyUnusable,
    Throttled,
)
from betrace_kms_server.host.process import descriptor_shortage
from betrace_kms_server.providers.gcp.sdk import api_errors, auth_errors

PERMISSIONS: Mapping[str, str] = {
    "GenerateDataKey": "cloudkms.cryptoKeyVersions.useToEncrypt",
    "Encrypt": "cloudkms.cryptoKeyVersions.useToEncrypt",
    "Decrypt": "cloudkms.cryptoKeyVersions.useToDecrypt",
    "DescribeKey": "cloudkms.cryptoKeys.get",
    "GenerateRandom": "cloudkms.locations.generateRandomBytes",
}
"""What IAM must grant for each of our operations."""
WITHDRAWN = frozenset({"DISABLED", "DESTROY_SCHEDULED", "DESTROYED"})
"""States of a key version into which somebody put it."""
_VERSION = re.compile(r"/cryptoKeyVersions/([1-9][0-9]{0,9})", re.ASCII)
_STATE = re.compile(r"(DISABLED|DESTROY_SCHEDULED|DESTROYED|PENDING_GENERATION|PENDING_IMPORT|[A-Z]+_FAILED)\b")


@dataclass(frozen=True, slots=True)
class KeyName:
    """The resource name of a CryptoKey, the master key: projects/P/locations/L/keyRings/R/cryptoKeys/K."""

    name: str

    @property
    def project(self) -> str:
        """Id of its project."""
        return self.name.split("/")[1]

    @property
    def location(self) -> str:
        """A region, a multi-region, or "global"."""
        return self.name.split("/")[3]

    @property
    def parent(self) -> str:
        """Resource name of its location."""
        return self.name.partition("/keyRings/")[0]

    @property
    def flags(self) -> str:
        """Options of gcloud that name the key."""
        _, project, _, location, _, ring, _, key = self.name.split("/")
        return f"--key={key} --keyring={ring} --location={location} --project={project}"


def refused(cause: Exception, action: str, key: KeyName) -> KmsError:
    """Return the error for a call that the SDK let fail, whatever it raised."""
    if isinstance(cause, KmsError):
        return cause
    known = next((TABLE[kind] for kind in type(cause).__mro__ if kind in TABLE), None)
    if known is not None:
        return known(cause, action, key)
    return KmsUnreachable(
        f"a call to Cloud KMS fails with {type(cause).__name__}: the daemon's log has the traceback",
        metadata={"kind": "sdk"},
    )


def version_unusable(key: KeyName, state: str, version: str = "") -> MasterKeyUnusable:
    """Return the error for a key version that is not enabled."""
    named = f"version {version} of {key.name}" if version else f"a version of {key.name}"
    number = version or "VERSION"
    enable = f"`gcloud kms keys versions enable {number} {key.flags}`"
    steps = {
        "DISABLED": f"enable it with {enable}",
        "DESTROY_SCHEDULED": f"restore it with `gcloud kms keys versions restore {number} {key.flags}`, then {enable}",
        "DESTROYED": "what it wrapped is lost; for new keys, make another version the primary one",
        "PENDING_GENERATION": "wait until Cloud KMS has made it",
        "PENDING_IMPORT": "wait until its import is over",
    }
    step = steps.get(state, f"make another version and enable it, see `gcloud kms keys versions list {key.flags}`")
    return MasterKeyUnusable(
        f"{named} is {state or 'not enabled'}: {step}",
        metadata={"master_key": key.name},
        state=state or None,
        withdrawn=state in WITHDRAWN,
    )


def without_credentials(cause: Exception) -> KmsError:
    """Return the error for credentials of the daemon that were not found or not refreshed."""
    if isinstance(cause, auth_errors.DefaultCredentialsError):
        step = (
            "none are found, or they cannot be read: in GKE, let the pod's service account be allowed to use the key;"
            " elsewhere, set GOOGLE_APPLICATION_CREDENTIALS"
        )
        kind = "missing"
    elif isinstance(cause, auth_errors.RefreshError | auth_errors.OAuthError | auth_errors.ClientCertError):
        step = (
            "they are refused: check that the service account is neither disabled nor deleted, what it may impersonate,"
            " and the machine's clock"
        )
        kind = "rejected"
    elif isinstance(cause, auth_errors.GoogleAuthError | TimeoutError | OSError):
        step = "no answer: check the route to the metadata server (169.254.169.254) or to the server of tokens"
        kind = "unreachable"
    else:
        step = f"google-auth fails with {type(cause).__name__}, and the daemon's log has its text"
        kind = "sdk"
    return CredentialsUnavailable(
        f"the daemon's own Google credentials cannot be obtained: {step}", metadata={"kind": kind}
    )


def _invalid(cause: Exception, action: str, key: KeyName) -> KmsError:
    """Of Decrypt, the ciphertext is a caller's; of the others, only the key is named in a request."""
    if "crc32c" in str(cause).lower():
        return KmsUnreachable(
            "a request reached Cloud KMS damaged: try again; if it stays, check the proxies on the route",
            metadata={"kind": "damaged"},
        )
    if action == "Decrypt":
        return DoesNotOpen()
    return MasterKeyUnusable(
        f"Cloud KMS refuses to encrypt with {key.name}: check it with `gcloud kms keys describe`; its purpose must be"
        " ENCRYPT_DECRYPT",
        metadata={"master_key": key.name},
    )


def _precondition(cause: Exception, _action: str, key: KeyName) -> KmsError:
    said = str(cause)
    state, version = _STATE.search(said), _VERSION.search(said)
    return version_unusable(key, state[1] if state else "", version[1] if version else "")


def _missing(_cause: Exception, action: str, key: KeyName) -> KmsError:
    if action == "GenerateRandom":
        return MasterKeyUnusable(
            f"Cloud KMS has no generator of random bytes in {key.location}: set gcp.kms.random=os",
            metadata={"master_key": key.name},
        )
    return MasterKeyUnusable(
        f"Cloud KMS has no key {key.name}: check gcp.kms.key-name, and the version that wrapped this key",
        metadata={"master_key": key.name},
    )


_DENIALS: Mapping[str, str] = {
    "SERVICE_DISABLED": (
        "the Cloud KMS API is off: run `gcloud services enable cloudkms.googleapis.com --project={project}`"
    ),
    "BILLING_DISABLED": "billing is off for the project: link {project} to a billing account",
    "ACCESS_TOKEN_SCOPE_INSUFFICIENT": (
        "the access token of the daemon has not the scope cloud-platform: give it to the virtual machine or node pool,"
        " or use Workload Identity"
    ),
    "USER_PROJECT_DENIED": "the quota project is not allowed: check GOOGLE_CLOUD_QUOTA_PROJECT and its permissions",
    "SECURITY_POLICY_VIOLATED": (
        "a perimeter of VPC Service Controls forbids the call: let the daemon's project and account through it"
    ),
}
"""Reasons of google.rpc.ErrorInfo for which a role is not the remedy."""


def _denied(cause: Exception, action: str, key: KeyName) -> KmsError:
    permission = PERMISSIONS[action]
    metadata = {"action": permission, "master_key": key.name}
    reason = str(getattr(cause, "reason", None) or "")
    if "VPC_SERVICE_CONTROLS" in str(cause) or "vpcServiceControls" in str(cause):
        reason = "SECURITY_POLICY_VIOLATED"
    if (known := _DENIALS.get(reason)) is not None:
        step = known.format(project=key.project)
        return AccessDenied(f"Cloud KMS denies {permission}: {step}", metadata={**metadata, "kind": reason})
    where = key.parent if action == "GenerateRandom" else key.name
    return AccessDenied(
        f"Cloud KMS denies {permission} on {where}, or there is no such resource: grant it to the daemon's service"
        " account by a role, and check gcp.kms.key-name",
        metadata=metadata,
    )


def _throttled(_cause: Exception, _action: str, key: KeyName) -> KmsError:
    return Throttled(
        f"Cloud KMS throttles: try again later, or raise the quotas of cryptographic requests of project {key.project}"
    )


def _rejected(_cause: Exception, _action: str, _key: KeyName) -> KmsError:
    return CredentialsUnavailable(
        "Cloud KMS does not accept the daemon's access token: check the service account, its credentials and the"
        " machine's clock",
        metadata={"kind": "rejected"},
    )


def _unreachable(cause: Exception, _action: str, _key: KeyName) -> KmsError:
    said = str(cause)
    if "handshake" in said or "CERTIFICATE_VERIFY_FAILED" in said:
        return KmsUnreachable(
            "TLS with Cloud KMS fails: check gcp.kms.endpoint and the proxies on the route; for an authority of your"
            " own, set GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
            metadata={"kind": "tls"},
        )
    return KmsUnreachable(
        descriptor_shortage()
        or "no answer from Cloud KMS: check the route to its TCP port 443, gcp.kms.endpoint, and the status page of"
        " Google Cloud"
    )


def _not_cloud_kms(cause: Exception, _action: str, _key: KeyName) -> KmsError:
    return KmsUnreachable(
        f"what answers is not Cloud KMS ({type(cause).__name__}): check gcp.kms.endpoint and the proxies on the route",
        metadata={"kind": "answer"},
    )


def _credentials(cause: Exception, _action: str, _key: KeyName) -> KmsError:
    return without_credentials(cause)


TABLE: Mapping[type[Exception], Callable[[Exception, str, KeyName], KmsError]] = {
    # A class stands for those below it that are not listed: InvalidArgument is a BadRequest.
    api_errors.InvalidArgument: _invalid,
    api_errors.FailedPrecondition: _precondition,
    api_errors.Unauthorized: _rejected,
    api_errors.Forbidden: _denied,
    api_errors.NotFound: _missing,
    api_errors.TooManyRequests: _throttled,
    api_errors.Aborted: _unreachable,
    api_errors.Cancelled: _unreachable,
    api_errors.MethodNotImplemented: _not_cloud_kms,
    api_errors.ServerError: _unreachable,
    api_errors.RetryError: _unreachable,
    api_errors.GoogleAPICallError: _not_cloud_kms,
    auth_errors.GoogleAuthError: _credentials,
    TimeoutError: _unreachable,
    OSError: _unreachable,
}
