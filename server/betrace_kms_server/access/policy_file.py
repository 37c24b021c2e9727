"""The policy of a file, read again when it changes. A new version that is not valid leaves the old one in force."""

import os
from pathlib import Path

import structlog

from betrace_kms_server.access.identity import Caller
from betrace_kms_server.access.policy import InvalidPolicy, Policy, parse_policy
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.host.trusted_files import Signature, Untrusted, check_folder, read_trusted, signature

log = structlog.get_logger()

_OTHERS_READ = 0o044
"""A policy is no secret; others must not write it."""


class PolicyFile:
    """The rules of `kms.policy.file`. Raises StartRefused if they cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._policy, self._signature = read_policy(path)
        except (Untrusted, InvalidPolicy) as cause:
            raise StartRefused(f"kms.policy.file: {cause}") from None
        log.info("The policy was read", file=str(path), rules=len(self._policy.rules))

    def check(self, caller: Caller, operation: str, tenant_id: str) -> str:
        """Return the name of the rule that allows a call. Raises Unauthenticated and CallerNotAllowed."""
        return self._policy.check(caller, operation, tenant_id)

    def refresh(self) -> None:
        """Read the file again if it changed."""
        now = signature(self._path, follow=True)
        if now != self._signature:
            self._signature = now
            self.reload()

    def reload(self) -> None:
        """Read the file again. One that is not good is logged, and the rules stay what they were."""
        try:
            self._policy, self._signature = read_policy(self._path)
        except (Untrusted, InvalidPolicy) as cause:
            log.error(f"The policy stays what it was: {cause}")  # noqa: G004  # a sentence
            return
        log.info("The policy was read again", file=str(self._path), rules=len(self._policy.rules))


def read_policy(path: Path) -> tuple[Policy, Signature | None]:
    """Return the policy of a file. Raises Untrusted if others can change it, and InvalidPolicy if it is not valid.

    Symbolic links are followed, to a folder that is guarded too: a mounted ConfigMap is made of them. Its folder is
    writable for all, on a volume that is mounted read-only.
    """
    for folder in dict.fromkeys((path.parent, Path(os.path.realpath(path)).parent)):
        if not _is_read_only(folder):
            check_folder(folder)
    content, found = read_trusted(path, readers=_OTHERS_READ, follow=True)
    try:
        return parse_policy(content), found
    except InvalidPolicy as cause:
        raise InvalidPolicy(f"{path}: {cause}") from None


def _is_read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False
