"""What an API server says of Kubernetes objects, and what became of somebody's objects in a render."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from tests.interop.tools import tool

_IDENTIFYING = ("mountPath", "name", "containerPort", "key", "topologyKey")
"""What distinguishes the elements of a list, as in a strategic merge patch; the first that an element has."""


def loaded(text: str) -> Mapping[tuple[str, str], Any]:
    """Return the objects of a YAML stream by kind and name."""
    return {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(text) if each}


def faults(text: str, pod_security: str = "restricted") -> Sequence[str]:
    """Return what an API server would refuse in a namespace of that level of the Pod Security Standards."""
    command = [tool("kubecheck"), f"-pod-security={pod_security}"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def differences(before: object, after: object, path: str = "") -> Sequence[str]:
    """Return what is different, one line for each place: `+` is new, `-` is gone, `~` is changed or in another order.

    An element of a list is a place of its own: `spec.template.spec.containers[backend].env[PATH]`. A change that only
    adds has lines with `+` only: everything that was there is there, byte for byte, and in its order.
    """
    return list(_differences(before, after, path))


def _differences(before: object, after: object, path: str) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        yield from _of_places(before, after, lambda key: f"{path}.{key}" if path else f"{key}")
    elif isinstance(before, Sequence) and isinstance(after, Sequence) and not isinstance(before, str):
        old, new = _places(before), _places(after)
        yield from _of_places(old, new, lambda key: f"{path}[{key}]")
        if [key for key in old if key in new] != [key for key in new if key in old]:
            yield f"~ {path}"
    elif yaml.safe_dump(before) != yaml.safe_dump(after):
        yield f"~ {path}"


def _of_places(before: Mapping[Any, Any], after: Mapping[Any, Any], name: Any) -> Iterator[str]:
    for key in before:
        if key not in after:
            yield f"- {name(key)}"
        else:
            yield from _differences(before[key], after[key], name(key))
    yield from (f"+ {name(key)}" for key in after if key not in before)


def _places(elements: Sequence[Any]) -> Mapping[Any, Any]:
    """Return the elements by what identifies them; a second one with the same place gets its number."""
    found: dict[Any, Any] = {}
    for element in elements:
        key = element
        if isinstance(element, Mapping):
            key = next((element[name] for name in _IDENTIFYING if name in element), yaml.safe_dump(element))
        elif isinstance(element, list):
            key = yaml.safe_dump(element)
        while key in found:
            key = f"{key}#"
        found[key] = element
    return found
