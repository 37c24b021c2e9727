"""Makes aws_schema.json: the schema of those types of the AWS provider that deploy/terraform uses.

No package registry has the provider as a binary, but PyPI has bindings that are generated from its schema. Their
declarations say which arguments there are and which are required, their code of what type each is, and whether it is a
block. They do not say which optional arguments AWS fills in, and computed lists of objects are left out. Give it the
wheel of `pip download --no-deps cdktn-provider-aws==25.8.1`::

    python -m tests.interop.aws_schema_extract cdktn_provider_aws-25.8.1-py3-none-any.whl
"""

import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.interop.tools import ROOT

SCHEMA = Path(__file__).with_name("aws_schema.json")
_USED = re.compile(r'^(resource|data) "(aws_\w+)"', re.MULTILINE)
_SCALARS = {"string": "string", "number": "number", "boolean": "bool"}
_MEMBER = re.compile(r"^    readonly (\w+)(\??): (\w+|\{)", re.MULTILINE)
_COMPUTED = re.compile(
    r"^    get (\w+)\(\): (?:cdktn\.)?(string|number|boolean|IResolvable|string\[\]|StringMap);", re.MULTILINE
)
_ARGUMENT = re.compile(
    r'^ +(\w+): \{\n.*(?:struct\.|this\._)(\w+).*\n\s+isBlock: (\w+),\n\s+type: "(\w+)",\n\s+storageClassType: "(\w+)"',
    re.MULTILINE,
)


def used() -> Iterator[tuple[str, str]]:
    """Yield "resource" or "data", and the type, of everything in deploy/terraform."""
    files = sorted((ROOT / "deploy/terraform").rglob("*.tf"))
    yield from sorted({found for file in files for found in _USED.findall(file.read_text("utf-8"))})


def _camel(name: str) -> str:
    return "".join(map(str.capitalize, name.split("-")))


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class _Bindings:
    """The generated declarations and code of one type."""

    def __init__(self, declarations: str, code: str, type_name: str) -> None:
        interfaces = re.split(r"^export (?:interface|declare class) (?=\w)", declarations, flags=re.MULTILINE)
        self._interfaces = {text.split()[0]: text for text in interfaces[1:]}
        functions = re.split(r"^function |^    (?=synthesizeHclAttributes)", code, flags=re.MULTILINE)
        self._functions = {text.partition("(")[0]: text for text in functions}
        self._name = type_name

    def schema(self) -> Mapping[str, Any]:
        """Return the type's schema as `terraform providers schema -json` has it."""
        block = self._block(f"{self._name}Config", self._functions["synthesizeHclAttributes"])
        attributes = block["attributes"]
        for argument in attributes.values() if self._name.startswith("DataAws") else ():
            argument["computed"] = True  # the bindings do not tell; here it matters, because answers are mocked
        for name, kind in _COMPUTED.findall(self._interfaces[self._name]):
            if not name.endswith("Input"):
                kinds = {"string[]": ["list", "string"], "StringMap": ["map", "string"], "IResolvable": "bool"}
                attributes.setdefault(_snake(name), {"type": kinds.get(kind) or _SCALARS[kind], "computed": True})
        attributes["id"] = {"type": "string", "computed": True}
        return {"block": block}

    def _block(self, interface: str, function: str) -> dict[str, Any]:
        arguments = {member: (name, *rest) for name, member, *rest in _ARGUMENT.findall(function)}
        attributes, blocks = dict[str, Any](), dict[str, Any]()
        for member, optional, declared in _MEMBER.findall(self._interfaces[interface]):
            name, is_block, kind, storage = arguments[member]
            if is_block == "true":
                inner = self._block(declared, self._functions[declared[0].lower() + declared[1:] + "ToHclTerraform"])
                once = f"{member}{optional}: {declared};" in self._interfaces[interface]
                bounds = {"min_items": 0 if optional else 1} | ({"max_items": 1} if once else {})
                blocks[name] = {"nesting_mode": "set" if kind == "set" else "list", "block": inner, **bounds}
            else:
                type_ = _SCALARS.get(storage) or [kind, _SCALARS[storage.removesuffix("List").removesuffix("Map")]]
                attributes[name] = {"type": type_, "optional" if optional else "required": True}
        return {"attributes": attributes} | ({"block_types": blocks} if blocks else {})


def main(wheel: str) -> None:
    """Write aws_schema.json."""
    with zipfile.ZipFile(wheel) as whole:
        [archive] = [name for name in whole.namelist() if name.endswith(".jsii.tgz")]
        [about] = [name for name in whole.namelist() if name.endswith(".dist-info/METADATA")]
        [version] = re.findall(r"hashicorp/aws provider version ([\d.]+)", whole.read(about).decode())
        packed = io.BytesIO(whole.read(archive))
    folders = {(kind, name): ("data-" if kind == "data" else "") + name.replace("_", "-") for kind, name in used()}
    folders = {key: folder if key[0] == "data" else folder.removeprefix("aws-") for key, folder in folders.items()}
    wanted = {f"package/lib/{folder}/index.{end}" for folder in folders.values() for end in ("js", "d.ts")}
    with tarfile.open(fileobj=packed) as archived:
        texts = {each.name: archived.extractfile(each).read().decode() for each in archived if each.name in wanted}  # type: ignore[union-attr]
    schemas: dict[str, dict[str, Any]] = {"resource": {}, "data": {}}
    for (kind, name), folder in folders.items():
        declarations, code = (texts[f"package/lib/{folder}/index.{end}"] for end in ("d.ts", "js"))
        schemas[kind][name] = _Bindings(declarations, code, _camel(folder)).schema()
    lines = [f' "source": {json.dumps(Path(wheel).name)},', f' "provider_version": {json.dumps(version)},']
    for kind, of_kind in schemas.items():
        types = ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(each, sort_keys=True)}" for name, each in of_kind.items()
        )
        lines.append(f' "{kind}": {{\n{types}\n }}' + ("," if kind == "resource" else ""))
    SCHEMA.write_text("\n".join(["{", *lines, "}", ""]), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
