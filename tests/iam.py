"""Decides what a policy of ours allows, by the rules of the IAM user guide for what our policies use, and no others.

moto evaluates neither conditions nor resources. "IAM JSON policy elements: Condition", "Multivalued context keys" and
"Policy evaluation logic" are what this follows. A policy with anything that is not known here fails the test that asks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Policy = Mapping[str, Any]
Values = Sequence[str]

_ELEMENTS = frozenset({"Sid", "Effect", "Action", "Resource", "Principal", "Condition"})


def request_of(encryption_context: Mapping[str, str] | None) -> Mapping[str, Values]:
    """Return the condition keys of a call to KMS: "AWS KMS condition keys", kms:EncryptionContext:context-key."""
    context = encryption_context or {}
    names = {"kms:encryptioncontextkeys": tuple(context)} if context else {}
    return names | {f"kms:encryptioncontext:{name.lower()}": (value,) for name, value in context.items()}


def allows(
    policy: Policy, action: str, resource: str, request: Mapping[str, Values], principal: str | None = None
) -> bool:
    """Return whether a statement allows a call. In a key policy `*` is the key, and `principal` is who calls."""
    return any(
        action in _texts(statement["Action"])
        and (principal is None or principal in _texts(statement["Principal"]["AWS"]))
        and ("*" if principal else resource) in _texts(statement["Resource"])
        and _holds(statement.get("Condition", {}), request)
        for statement in _statements(policy)
    )


def _statements(policy: Policy) -> Iterator[Mapping[str, Any]]:
    for statement in policy["Statement"]:
        assert (set(), "Allow") == (set(statement) - _ELEMENTS, statement["Effect"]), statement
        yield statement


def _holds(condition: Mapping[str, Any], request: Mapping[str, Values]) -> bool:
    """Return whether all operators hold with all their keys; of several values of one key, one must match."""
    return all(
        _OPERATORS[operator](request.get(key.lower(), ()), _texts(values))
        for operator, keys in condition.items()
        for key, values in keys.items()
    )


def _single(found: Values, wanted: Values) -> bool:
    assert len(found) <= 1, "a key of several values needs ForAnyValue or ForAllValues"
    return any(value in wanted for value in found)


_OPERATORS: Mapping[str, Callable[[Values, Values], bool]] = {
    "StringEquals": _single,
    "ForAnyValue:StringEquals": lambda found, wanted: any(value in wanted for value in found),
}


def _texts(value: str | Values) -> Values:
    return (value,) if isinstance(value, str) else value
