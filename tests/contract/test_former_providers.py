"""Leaving a provider: the former one unwraps what it wrapped, wraps nothing, and is then needed no more.

Every provider is left for the local one, and the local one is left for every other.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from betrace_kms_server.cache.key_cache import KeyCache
from betrace_kms_server.core.errors import DoesNotOpen, MasterKeyUnusable
from betrace_kms_server.core.master_keys import step_to_configure
from betrace_kms_server.core.tenancy import encryption_context
from betrace_kms_server.data_keys.branch_keys import BranchKeys
from betrace_kms_server.data_keys.branch_messages import BranchMessages
from betrace_kms_server.data_keys.keyring import KeyRing
from betrace_kms_server.data_keys.row_keys import rewrap_branch_keys
from betrace_kms_server.providers.former import ProviderWithFormers
from betrace_kms_server.providers.protocol import KeyProvider
from betrace_kms_server.signing_keys.rewrapping import rewrap_signing_keys
from betrace_kms_server.signing_keys.signer import Signer
from betrace_kms_server.stores.sqlite.branch_keys import SqliteBranchKeys
from betrace_kms_server.stores.sqlite.store import SqliteStore

from tests.contract.doubles import CountedLocalProvider, Kms
from tests.contract.samples import span

NewCache = Callable[..., KeyCache]
CONTEXT = {"purpose": "backup"}


@dataclass(frozen=True, slots=True)
class Move:
    """A provider that is left, and the one that it is left for."""

    former: KeyProvider
    today: KeyProvider

    @property
    def during(self) -> KeyProvider:
        """The provider of a daemon that is configured with both."""
        return ProviderWithFormers(self.today, [self.former])


@pytest.fixture(params=["to it", "from it"])
def move(request: pytest.FixtureRequest, kms: Kms) -> Move:
    """Give a move to or from each provider; the other end is a local one."""
    local = CountedLocalProvider(os.urandom(32))
    return Move(local, kms.provider) if request.param == "to it" else Move(kms.provider, local)


def signer(provider: KeyProvider, store: SqliteStore, new_cache: NewCache) -> Signer:
    """Return a signer as after a restart."""
    caches = {"signing_keys": new_cache(), "public_keys": new_cache()}
    return Signer(provider, store, **caches, auto_create=True, now=lambda: 1_700_000_000.0)


async def test_messages_and_bare_keys_open_and_are_sealed_anew(move: Move, new_cache: NewCache) -> None:
    """With both they open; after ReEncrypt they open without the former one, and what was not moved does not."""
    before, during = KeyRing(move.former, new_cache()), KeyRing(move.during, new_cache())
    after = KeyRing(move.today, new_cache())
    message = (await before.seal("acme", b"payload", CONTEXT)).ciphertext
    bare = await before.data_key("acme", 32, CONTEXT)
    opened = await during.open("acme", message, CONTEXT)
    unwrapped = await during.open("acme", bare.wrapped.blob, CONTEXT)
    assert (opened.plaintext, opened.master_key_arn) == (b"payload", move.former.master_key_arn)
    assert (unwrapped.plaintext, unwrapped.master_key_arn) == (bytes(bare.material.raw), move.former.master_key_arn)
    for ciphertext, plaintext in ((message, b"payload"), (bare.wrapped.blob, bytes(bare.material.raw))):
        anew = await during.reseal("acme", ciphertext, CONTEXT, CONTEXT)
        assert plaintext == (await after.open("acme", anew.ciphertext, CONTEXT)).plaintext
        with pytest.raises(DoesNotOpen, match=r"its provider in kms\.former-providers"):
            await after.open("acme", ciphertext, CONTEXT)
        with pytest.raises(DoesNotOpen):
            await during.open("globex", ciphertext, CONTEXT)


async def test_signing_keys_move(move: Move, store: SqliteStore, new_cache: NewCache) -> None:
    """They sign before, during and after the move, with one key."""
    first = await signer(move.former, store, new_cache).sign("acme", span())
    with pytest.raises(MasterKeyUnusable, match=step_to_configure(move.former.master_key_arn, move.today.name)):
        await signer(move.today, store, new_cache).sign("acme", span())
    during = await signer(move.during, store, new_cache).sign("acme", span())
    await rewrap_signing_keys(move.during, store)
    after = await signer(move.today, store, new_cache).sign("acme", span())
    assert [first.signature] * 2 == [during.signature, after.signature]
    assert {move.today.master_key_arn} == await store.wrapped_by()


async def test_branch_keys_move(move: Move, store: SqliteStore, new_cache: NewCache) -> None:
    """Messages under them open before, during and after the move."""
    rows = SqliteBranchKeys(store)

    async def changed(tenant_id: str) -> None: ...

    def ring(provider: KeyProvider) -> KeyRing:
        keys = BranchKeys(provider, rows, new_cache(), logical_name="logical", changed=changed)
        return KeyRing(provider, new_cache(), branch_messages=BranchMessages(keys, seals=True))

    sealed = (await ring(move.former).seal("acme", b"payload", CONTEXT)).ciphertext
    assert b"payload" == (await ring(move.during).open("acme", sealed, CONTEXT)).plaintext
    await rewrap_branch_keys(move.during, rows, "logical")
    assert {move.today.master_key_arn} == await rows.wrapped_by()
    assert b"payload" == (await ring(move.today).open("acme", sealed, CONTEXT)).plaintext


async def test_former_provider_makes_and_wraps_nothing(kms: Kms) -> None:
    """It is asked to unwrap what it wrapped, and for nothing else."""
    context = encryption_context("acme", {})
    wrapped = (await kms.provider.generate_data_key(32, context)).wrapped
    kms.calls.clear()
    today = CountedLocalProvider(os.urandom(32))
    both = ProviderWithFormers(today, [kms.provider])
    made = await both.generate_data_key(32, context)
    again = await both.wrap(made.material, context)
    for each in (made.wrapped, again, wrapped):
        await both.unwrap(each, context)
    assert {"Decrypt": 1} == dict(kms.calls)
    assert {"GenerateDataKey": 1, "Encrypt": 1, "Decrypt": 2} == dict(today.calls)
    assert [today.master_key_arn, kms.provider.master_key_arn] == list(both.decrypt_key_arns)
    assert (both.is_current(wrapped.master_key_arn), both.is_current(again.master_key_arn)) == (False, True)


async def test_what_neither_wrapped_does_not_open(kms: Kms) -> None:
    """Nobody is asked."""
    context = encryption_context("acme", {})
    foreign = (await kms.foreign.generate_data_key(32, context)).wrapped
    kms.calls.clear()
    both = ProviderWithFormers(CountedLocalProvider(os.urandom(32)), [kms.provider])
    with pytest.raises(DoesNotOpen):
        await both.unwrap(foreign, context)
    assert (None, {}) == (both.unwrapping_key_for(foreign.master_key_arn), dict(kms.calls))


async def test_each_master_key_is_checked_by_its_provider(move: Move) -> None:
    """A check of a former master key does not ask today's provider for it."""
    for arn in move.during.decrypt_key_arns:
        await move.during.check(arn)
    await move.during.check()
