"""What must not be so in production, of a deployment's settings and of its process. Asks no one."""

from collections.abc import Sequence

from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.findings import Finding
from betrace_kms_server.host.process import ROOT


def inspect_deployment(
    settings: Settings, *, callers: str | None, ephemeral: str | None, root: bool
) -> Sequence[Finding]:
    """Return a finding for each condition, good ones too.

    `callers` is what to do if not all of them are authenticated, `ephemeral` what makes the key store's volume so.
    """
    overrides = {
        "aws.kms.endpoint": ("calls do not go to AWS KMS", settings.endpoint),
        "gcp.kms.endpoint": ("calls do not go to Cloud KMS", settings.gcp_emulated),
        "kms.store.endpoint": ("keys are not kept in DynamoDB of AWS", settings.store_endpoint),
    }
    return [
        Finding(
            "provider",
            "provider local is NOT FOR PRODUCTION: set betrace.kms.provider=aws there"
            if settings.provider == "local"
            else "",
        ),
        Finding(
            "endpoints",
            "; ".join(
                f"{name} is set: {what}; remove it in production" for name, (what, value) in overrides.items() if value
            ),
        ),
        Finding("callers", callers or ""),
        Finding("user", ROOT if root else ""),
        Finding(
            "memory",
            "kms.process.dumpable is set: processes of the daemon's user can read its keys; remove it in production"
            if settings.process_dumpable
            else "",
        ),
        Finding(
            "volume",
            f"kms.data-dir is on {ephemeral}, and its keys die with it: mount a persistent volume" if ephemeral else "",
        ),
        Finding(
            "audit",
            ""
            if settings.audit_file
            else "kms.audit.file is not set, and nothing records who used which key: give a path, or - for stdout",
        ),
        Finding(
            "reflection",
            "kms.server.reflection is on, and lists what kms.policy.file hides: remove it in production"
            if settings.reflects and settings.policy_file
            else "",
        ),
    ]
