"""Opens the provider that wraps keys, and the former ones, which unwrap what they wrapped. SDKs are imported late."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import structlog

from betrace_kms_server.config.settings import Settings
from betrace_kms_server.core.errors import StartRefused
from betrace_kms_server.core.key_event import KmsObserver
from betrace_kms_server.core.master_keys import provider_of
from betrace_kms_server.providers.budget import BudgetedProvider
from betrace_kms_server.providers.former import ProviderWithFormers
from betrace_kms_server.providers.local import MASTER_KEY_FILE, LocalProvider, load_master_key
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.stores.branch_keys import BranchKeyStore
from betrace_kms_server.stores.protocol import KeyStore

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Start:
    """What a provider is opened with. `master_keys` are those that wrapped what the stores hold."""

    settings: Settings
    master_keys: Sequence[str]
    observe: KmsObserver
    resources: AsyncExitStack


async def open_provider(
    settings: Settings,
    store: KeyStore,
    branch_keys: BranchKeyStore | None,
    observe: KmsObserver,
    resources: AsyncExitStack,
) -> KeyProvider:
    """Return the provider that the settings ask for, the former ones behind it.

    Raises StartRefused if the stores hold keys that none of them wrapped.
    """
    log.info(f"Initializing KMS provider: {settings.provider}")  # noqa: G004  # the words of BeTrace's documents
    rows = sorted(await store.wrapped_by() | (await branch_keys.wrapped_by() if branch_keys else set()))
    for name in map(provider_of, rows):
        if not settings.uses(name):
            raise StartRefused(
                f"the key store holds keys wrapped by provider {name}, which {settings.provider} cannot use: set"
                f" betrace.kms.provider={name}, add {name} to kms.former-providers, or choose another kms.data-dir"
            )
    start = _Start(settings, rows, observe, resources)
    provider = await _OPEN[settings.provider](start)
    if settings.former_providers:
        formers = [await _OPEN[name](start) for name in settings.former_providers]
        log.info("Former providers unwrap what they wrapped", providers=list(settings.former_providers))
        provider = ProviderWithFormers(provider, formers)
    if settings.provider == "local" and not settings.former_providers:
        return provider
    return BudgetedProvider(
        provider,
        tenant_per_second=settings.budget_tenant_per_second,
        tenant_burst=settings.budget_tenant_burst,
        per_second=settings.budget_per_second,
    )


async def _open_local(start: _Start) -> KeyProvider:
    path = start.settings.data_dir / MASTER_KEY_FILE
    ours = [arn for arn in start.master_keys if provider_of(arn) == "local"]
    create = not ours and start.settings.provider == "local"
    local = LocalProvider(load_master_key(path, create=create), observe=start.observe)
    if any(arn not in local.decrypt_key_arns for arn in ours):
        raise StartRefused(
            f"the key store holds keys that another {MASTER_KEY_FILE} wrapped: restore that file, or choose another"
            " kms.data-dir"
        )
    if start.settings.provider == "local":
        log.warning("Using the local provider - NOT FOR PRODUCTION USE", master_key_file=str(path))
    return local


async def _open_aws(start: _Start) -> KeyProvider:
    from betrace_kms_server.providers.aws.provider import (  # late: the AWS SDK takes most of a second
        AwsProvider,
        Replica,
    )

    settings = start.settings
    log.info(f"Using AWS KMS - region: {settings.kms_region}, key: {settings.master_key_id}")  # noqa: G004
    if settings.endpoint:
        log.warning("aws.kms.endpoint is set: calls do not go to AWS KMS", endpoint=settings.endpoint)
    return await start.resources.enter_async_context(
        AwsProvider(
            settings.master_key_id or "",
            region=settings.kms_region,
            endpoint=settings.endpoint,
            replicas=list(map(Replica, settings.replica_key_ids, settings.replica_endpoints or repeat(None))),
            former_key_arns=settings.decrypt_key_ids,
            call_seconds=settings.call_timeout_ms / 1000,
            observe=start.observe,
        )
    )


async def _open_azure(start: _Start) -> KeyProvider:
    settings = start.settings
    try:
        from betrace_kms_server.providers.azure.opening import open_azure  # late: the Azure SDK takes half a second
    except ModuleNotFoundError as cause:
        raise StartRefused(f"{cause.name} is missing: install betrace-kms[server,azure]") from cause
    from betrace_kms_server.providers.azure.key_ids import KeyId

    key, sign_key = KeyId(settings.azure_key_id or ""), settings.azure_sign_key_id
    log.info("Using Azure Key Vault", key=key.id, sign_key=sign_key)
    return await start.resources.enter_async_context(
        open_azure(
            key,
            None if sign_key is None else KeyId(sign_key),
            call_seconds=settings.azure_call_timeout_ms / 1000,
            observe=start.observe,
        )
    )


async def _open_vault(start: _Start) -> KeyProvider:
    from betrace_kms_server.providers.vault.client import VaultClient
    from betrace_kms_server.providers.vault.errors import TransitKey
    from betrace_kms_server.providers.vault.opening import open_vault
    from betrace_kms_server.providers.vault.tokens import Login

    settings = start.settings
    key = TransitKey(settings.vault_mount, settings.vault_key or "")
    log.info("Using Vault", address=settings.vault_address, namespace=settings.vault_namespace, key=key.name)
    certificate = None
    if settings.vault_cert_file is not None and settings.vault_key_file is not None:
        certificate = settings.vault_cert_file, settings.vault_key_file
    client = VaultClient(
        settings.vault_address or "",
        namespace=settings.vault_namespace,
        ca_file=settings.vault_ca_file,
        certificate=certificate,
    )
    mount = settings.vault_auth_mount or settings.vault_auth
    return await start.resources.enter_async_context(
        open_vault(
            client,
            Login(settings.vault_auth, mount, settings.vault_role, settings.vault_token_file),
            key,
            random_of_vault=settings.vault_random == "transit",
            call_seconds=settings.vault_call_timeout_ms / 1000,
            observe=start.observe,
        )
    )


async def _open_pkcs11(start: _Start) -> KeyProvider:
    from betrace_kms_server.providers.pkcs11.keys import HsmKey, labelled
    from betrace_kms_server.providers.pkcs11.opening import open_pkcs11
    from betrace_kms_server.providers.pkcs11.processes import Module, Processes
    from betrace_kms_server.providers.pkcs11.wraps import FOLDER, WrapCount

    settings = start.settings
    token = settings.pkcs11_token_label or ""
    key = HsmKey(token, settings.pkcs11_key_label or "", bytes.fromhex(settings.pkcs11_key_id or ""))
    module = Module(
        settings.pkcs11_module or Path(),
        token,
        settings.pkcs11_pin_file or Path(),
        token_iv=settings.pkcs11_iv == "token",
    )
    log.info("Using PKCS#11", module=str(module.path), key=key.name)
    return await start.resources.enter_async_context(
        open_pkcs11(
            key,
            [labelled(token, each) for each in settings.pkcs11_former_key_labels],
            Processes(module, size=settings.pkcs11_processes, call_seconds=settings.pkcs11_call_timeout_ms / 1000),
            WrapCount(settings.data_dir / FOLDER, key.name, limit=settings.pkcs11_max_wraps),
            calls_at_once=settings.pkcs11_processes,
            random_of_token=settings.pkcs11_random == "token",
            observe=start.observe,
        )
    )


async def _open_gcp(start: _Start) -> KeyProvider:
    try:
        from betrace_kms_server.providers.gcp.errors import KeyName
        from betrace_kms_server.providers.gcp.opening import open_gcp
    except ModuleNotFoundError as cause:
        raise StartRefused(f"provider gcp needs {cause.name}: run pip install 'betrace-kms[server,gcp]'") from cause

    settings = start.settings
    log.info("Using Cloud KMS", key=settings.gcp_key_name, endpoint=settings.gcp_endpoint)
    if settings.gcp_emulated:
        log.warning("gcp.kms.endpoint is set: calls do not go to Cloud KMS", endpoint=settings.gcp_endpoint)
    return await start.resources.enter_async_context(
        open_gcp(
            KeyName(settings.gcp_key_name or ""),
            endpoint=settings.gcp_endpoint,
            emulated=settings.gcp_emulated,
            former=settings.gcp_decrypt_key_names,
            random_of_kms=settings.gcp_random == "hsm",
            call_seconds=settings.gcp_call_timeout_ms / 1000,
            observe=start.observe,
        )
    )


_OPEN: Mapping[str, Callable[[_Start], Awaitable[KeyProvider]]] = {
    "local": _open_local,
    "aws": _open_aws,
    "azure": _open_azure,
    "vault": _open_vault,
    "pkcs11": _open_pkcs11,
    "gcp": _open_gcp,
}
