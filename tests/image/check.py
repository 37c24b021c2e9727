"""Makes the image's file system by its Dockerfile, without an engine, and runs the daemon in it: `make image-check`.

The first and the last stage are carried out, instruction by instruction, each in a root of its own (root.py) into which
COPY brings what the ignore file lets through. Then the daemon runs there as the image's user, without privileges, on a
read-only root, in a network of its own. The base images are not here: the machine and its Python of the same version
stand for them, and .tools/grpc_health_probe for what the stage `probe` builds.

Needs root, to mount, and nothing but the standard library.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from string import Template

from tests.image.dockerfile import DOCKERFILE, ROOT, Stage, admitted, pairs, stages
from tests.image.root import Root, own_mounts, use_own_network
from tests.install import pinned, pins, pythons

VENV = "/opt/betrace-kms"
SBOM = "/usr/share/doc/betrace-kms/betrace-kms.cdx.json"
LIMIT_BYTES = 130 * 1024 * 1024
"""What the environment may have, bytecode included: it has 111 MiB."""
PROBE = {"/go/bin/grpc-health-probe": ROOT / ".tools/grpc_health_probe"}
"""What stands for files of the stage `probe`, which needs Go and a minute."""
READY_SECONDS, STOP_SECONDS = 30, 20


def carry_out(stage: Stage, root: Root, built: Mapping[str, Root]) -> None:
    """Do what a stage says, as far as files and its environment go."""
    folder = "/"
    for name, rest in stage.instructions:
        if name == "ENV":
            root.environ |= {key: Template(value).safe_substitute(root.environ) for key, value in pairs(rest)}
        elif name == "WORKDIR":
            folder = rest
            (root / folder).mkdir(parents=True, exist_ok=True)
        elif name == "COPY":
            copy(rest.split(), root, folder, built)
        elif name == "RUN":
            root.run("/bin/sh", "-c", rest, folder=folder)


def copy(words: list[str], root: Root, folder: str, built: Mapping[str, Root]) -> None:
    """Copy from another stage, or from the build context, into a root."""
    stage = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else ""
    *sources, target = words
    place = root / os.path.join(folder, target)
    for name in sources:
        source = found(name, stage, built)
        if source.is_dir():
            leave_out = None if stage else shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, place, symlinks=True, dirs_exist_ok=True, ignore=leave_out)
        else:
            file = place / source.name if target.endswith("/") else place
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, file)


def found(name: str, stage: str, built: Mapping[str, Root]) -> Path:
    """Return the file or folder that COPY names, if it is there."""
    if stage:
        path = built[stage] / name if stage in built else PROBE[name]
    elif name.rstrip("/") in admitted(Path(f"{DOCKERFILE}.dockerignore").read_text("utf-8")):
        path = ROOT / name
    else:
        sys.exit(f"COPY {name}: deploy/docker/Dockerfile.dockerignore keeps it out")
    if not path.exists():
        sys.exit(f"{path} is missing: make sbom tools")
    return path


def check_content(image: Root) -> str:
    """Check that the environment holds what is pinned and listed, and no more; return what that is in a few words."""
    code = "import importlib.metadata as m; [print(f'{d.name}=={d.version}') for d in m.distributions()]"
    installed = {pin for pin in pins(image.run(f"{VENV}/bin/python", "-I", "-c", code)) if pin[0] != "betrace-kms"}
    listed = json.loads((image / SBOM).read_text("utf-8"))["components"]
    for name, expected in (
        ("requirements/server.txt", pinned("server.txt")),
        (SBOM, pins("\n".join(f"{each['name']}=={each['version']}" for each in listed))),
    ):
        if installed != expected:
            sys.exit(f"{VENV} and {name} differ in {sorted(installed ^ expected)}")
    size = sum(path.lstat().st_size for path in (image / VENV).rglob("*"))
    if size > LIMIT_BYTES:
        sys.exit(f"{VENV} has {size:,} bytes, more than {LIMIT_BYTES:,}: what came with it?")
    return f"{len(installed)} pins, {size / 1024**2:.0f} MiB"


def check_daemon(image: Root, stage: Stage) -> None:
    """Run what the image runs, as its user, on a root that cannot be written; ask how it is, use it, and stop it."""
    user, volume, health = stage.last("USER"), stage.last("VOLUME"), stage.command("HEALTHCHECK")
    for folder in ("/", "/tmp", "/usr", VENV):
        image.run("/bin/sh", "-c", f"! touch {folder}/written 2>/dev/null", user=user)
    own_socket = f"unix:{volume}/callers/kms.sock;identity=backend"
    with tempfile.TemporaryFile("w+") as log:
        daemon = subprocess.Popen(
            image.command(*stage.command("ENTRYPOINT"), *stage.command("CMD"), user=user),
            env={**image.environ, "KMS_SERVER_LISTEN": f"127.0.0.1:50051,{own_socket}"},
            stderr=log,
            start_new_session=True,
        )
        try:
            end = time.monotonic() + READY_SECONDS
            while image.ended(*health, user=user) != 0 and daemon.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
            image.run(*health, user=user)
            image.run(*health, user=user, KMS_SERVER_LISTEN=own_socket)
            script = "echo hello | betrace-kms encrypt --tenant acme | betrace-kms decrypt --tenant acme"
            if image.run("/bin/sh", "-c", script, user=user) != "hello\n":
                raise SystemExit("the daemon does not give back what it sealed")
            daemon.send_signal(signal.SIGTERM)
            if (code := daemon.wait(STOP_SECONDS)) != 0:
                raise SystemExit(f"the daemon ended with {code} after SIGTERM")
            log.seek(0)
            if "Traceback" in log.read():
                raise SystemExit("the daemon logged a defect")
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


def main() -> None:
    """Make the image and check it."""
    build, _, final = stages(DOCKERFILE.read_text("utf-8"))
    version = re.sub(r"^python:(\d+\.\d+).*", r"\1", final.image)
    python = pythons().get(version)
    if python is None:
        sys.exit(f"Python {version}, which the image has, is not here")
    kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_"))}
    began = time.monotonic()
    with own_mounts() as folder:
        roots: dict[str, Root] = {}
        for stage in (build, final):
            roots[stage.name] = Root(folder / f"stage-{stage.name}", Path(python).parents[1], kept)
            carry_out(stage, roots[stage.name], roots)
        image = roots[final.name]
        content = check_content(image)
        image.seal(final.last("VOLUME"))
        use_own_network()
        check_daemon(image, final)
    print(f"The image: {content}; the daemon serves on a read-only root and drains ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
