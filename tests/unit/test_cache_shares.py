"""Which tenant gives way in a full cache."""

from collections import Counter

from betrace_kms_server.cache.key_cache import KeyCache
from hypothesis import given
from hypothesis import strategies as st

SIZE = 20


def key(tenant: str, number: int) -> tuple[str, str, str, int]:
    return ("encryption", "arn", tenant, number)


async def fill(cache: KeyCache, tenant: str, numbers: range) -> None:
    for number in numbers:
        await cache.set(key(tenant, number), object())


async def test_tenant_with_many_contexts_evicts_itself() -> None:
    """1,000 contexts of one tenant leave the keys of the others where they are."""
    cache = KeyCache("encryption", ttl=60, max_size=SIZE)
    for tenant in "abcde":
        await fill(cache, tenant, range(2))
    await fill(cache, "many", range(1000))
    assert {"a": 2, "b": 2, "c": 2, "d": 2, "e": 2, "many": 10} == Counter(each[2] for each in cache._entries)
    assert {*range(990, 1000)} == {each[3] for each in cache._entries if each[2] == "many"}


async def test_heavy_tenant_gives_way_to_new_ones() -> None:
    """A tenant that is alone may fill the cache, and gives way down to a quarter when others come."""
    cache = KeyCache("encryption", ttl=60, max_size=SIZE)
    await fill(cache, "many", range(100))
    assert SIZE == len(cache)
    for number in range(SIZE - SIZE // 4):
        await fill(cache, f"new-{number}", range(1))
        await fill(cache, "many", range(99, 100))  # in use all the time
    held = Counter(each[2] for each in cache._entries)
    assert (5, 16) == (held["many"], len(held))
    assert await cache.exists(key("many", 99))


@given(
    st.lists(
        st.tuples(st.sampled_from("aaaabcde"), st.integers(0, 30), st.sampled_from([True, True, True, False])),
        min_size=40,
        max_size=150,
    )
)
async def test_light_tenant_never_gives_way_to_a_heavy_one(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever is put and deleted, the size holds, the counts agree, and no light tenant loses a key to a heavy one."""
    cache = KeyCache("encryption", ttl=60, max_size=SIZE)
    for tenant, number, put in steps:
        before = Counter(each[2] for each in cache._entries)
        await (cache.set(key(tenant, number), object()) if put else cache.delete(key(tenant, number)))
        after = Counter(each[2] for each in cache._entries)
        assert len(cache) <= SIZE
        assert {name: len(keys) for name, keys in cache._shares._tenants.items()} == dict(after)
        if put and max(before.values(), default=0) > SIZE // 4:
            assert all(before[name] > SIZE // 4 for name in before if after[name] < before[name])
