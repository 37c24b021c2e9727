"""Which caller may use which tenants, and by which calls: rules in a TOML file, and nothing is allowed without one.

::

    [[rule]]
    name = "backend of the EU"
    identities = ["backend", "spiffe://example.org/ns/eu/*"]
    tenants = ["acme", "eu-*"]
    operations = ["SignSpan", "VerifySpan"]

An identity or a tenant ends with `*` to stand for all that begin so; `"*"` stands for every authenticated caller, every
tenant or every operation. Rules only allow, so their order does not matter. Everything else in the file is refused: a
misspelled member would otherwise be a rule that says something else.

`Policy` is one version of the file. Decisions that allow are remembered in it, so a reload forgets them; refusals are
not, because a caller can ask about as many tenants as it likes.
"""

import re
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any

from betrace.kms.v1 import key_management_pb2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from betrace_kms_server.access.identity import Caller
from betrace_kms_server.core.errors import CallerNotAllowed, Unauthenticated

OPERATIONS = tuple(
    method.name for method in key_management_pb2.DESCRIPTOR.services_by_name["KeyManagementService"].methods
)
"""Names of the calls of KeyManagementService, each of which is an operation of its own."""
MAX_REMEMBERED = 10_000
_MAX_TENANT_CHARACTERS = 128
_TENANT = re.compile(r"[A-Za-z0-9._:-]{1,128}\*?|\*", re.ASCII)
_MAX_IDENTITY_CHARACTERS = 2048
"""As long as the name of a certificate may be."""


class InvalidPolicy(ValueError):
    """A policy that is not valid; the text names the rule and says what to fix."""


def _tenant(pattern: str) -> str:
    if _TENANT.fullmatch(pattern) is None:
        raise ValueError(f"{pattern[:140]!r} must be a tenant id, the beginning of one and *, or *")
    return pattern


def _identity(pattern: str) -> str:
    name = pattern.removesuffix("*")
    if len(name) > _MAX_IDENTITY_CHARACTERS or not pattern or "*" in name or not pattern.isprintable():
        raise ValueError(f"{pattern[:140]!r} must be the name of a caller, the beginning of one and *, or *")
    return pattern


def _operation(name: str) -> str:
    if name != "*" and name not in OPERATIONS:
        raise ValueError(f"{name[:140]!r} is no operation: write * or some of {', '.join(OPERATIONS)}")
    return name


_Identities = Annotated[list[Annotated[str, AfterValidator(_identity)]], Field(min_length=1, max_length=1000)]
_Tenants = Annotated[list[Annotated[str, AfterValidator(_tenant)]], Field(min_length=1, max_length=10_000)]
_Operations = Annotated[list[Annotated[str, AfterValidator(_operation)]], Field(min_length=1)]


class Rule(BaseModel):
    """What some callers may do."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=100, pattern=r"^[ -~]+$")
    identities: _Identities
    tenants: _Tenants
    operations: _Operations


class _Patterns:
    """Patterns of one member of a rule, so that a refusal, which is not remembered, stays cheap with many of them."""

    __slots__ = ("_exact", "_prefixes")

    def __init__(self, patterns: Sequence[str]) -> None:
        self._exact = frozenset(pattern for pattern in patterns if not pattern.endswith("*"))
        self._prefixes = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))

    def match(self, text: str) -> bool:
        return text in self._exact or text.startswith(self._prefixes)


class _Matcher:
    """A rule as it is applied."""

    __slots__ = ("identities", "name", "operations", "tenants")

    def __init__(self, rule: Rule) -> None:
        self.name = rule.name
        self.identities, self.tenants = _Patterns(rule.identities), _Patterns(rule.tenants)
        self.operations = frozenset(OPERATIONS if "*" in rule.operations else rule.operations)

    def allows(self, identity: str, operation: str, tenant_id: str) -> bool:
        """Return whether the rule allows an authenticated caller an operation for a tenant."""
        return operation in self.operations and self.identities.match(identity) and self.tenants.match(tenant_id)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    rule: Annotated[list[Rule], Field(min_length=1, max_length=1000)]


class Policy:
    """One version of the rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._matchers = tuple(map(_Matcher, rules))
        self._allowed: dict[tuple[int, str, str, str], str] = {}

    def rule_for(self, identity: str, operation: str, tenant_id: str) -> str | None:
        """Return the name of the first rule that allows this, or None."""
        return next((rule.name for rule in self._matchers if rule.allows(identity, operation, tenant_id)), None)

    def check(self, caller: Caller, operation: str, tenant_id: str) -> str:
        """Return the name of the rule that allows a call. Raises Unauthenticated and CallerNotAllowed."""
        key = (caller.revision, caller.name, operation, tenant_id)
        rule = self._allowed.get(key)
        if rule is not None:
            return rule
        if not caller.name:
            raise Unauthenticated(
                "the caller is not authenticated, and kms.policy.file allows only callers that are: use a unix socket"
                " that has an identity, a token, or a client certificate"
            )
        rule = self.rule_for(caller.name, operation, tenant_id)
        if rule is None:
            raise CallerNotAllowed(caller.name, operation)
        if len(tenant_id) <= _MAX_TENANT_CHARACTERS:
            if len(self._allowed) >= MAX_REMEMBERED:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[key] = rule
        return rule


def parse_policy(content: bytes) -> Policy:
    """Read a policy. Raises InvalidPolicy."""
    try:
        document = _Document.model_validate(tomllib.loads(content.decode()))
    except UnicodeDecodeError:
        raise InvalidPolicy("it is not UTF-8 text: write it in TOML") from None
    except RecursionError:
        raise InvalidPolicy("it is nested too deeply: write [[rule]] tables only") from None
    except ValidationError as cause:
        raise InvalidPolicy("; ".join(_problem(error) for error in cause.errors()[:5])) from None
    except ValueError as cause:  # not always TOMLDecodeError: a number of 5,000 digits raises what int() does
        raise InvalidPolicy(f"it is no TOML: {cause}") from None
    names = [rule.name for rule in document.rule]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidPolicy(f"rule {twice!r} is there twice: give each rule a name of its own")
    return Policy(document.rule)


def _problem(error: Any) -> str:
    place = list(error["loc"])
    if place and place[0] == "rule" and len(place) > 1:
        place[:2] = [f"rule {place[1] + 1}"]
    message = error["msg"].removeprefix("Value error, ")
    return f"{', '.join(str(part) for part in place) or 'the file'}: {message}"
