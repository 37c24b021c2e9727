"""Ephemeral volumes, told from mount tables as the kernel and Kubernetes write them."""

from pathlib import Path

import pytest
from betrace_kms_server.host.volume import ephemeral_kind

ROOT = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
OVERLAY_ROOT = (
    "607 508 0:53 / / rw,relatime master:205 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/AB,"
    "upperdir=/var/lib/docker/overlay2/cd/diff,workdir=/var/lib/docker/overlay2/cd/work"
)
PROC = "608 607 0:56 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw"
PODS = "/var/lib/kubelet/pods/0f3c9c1e-6c1e-4f0e-9d0d-3a5d0c1d2e3f"
VOLUME = "/kmstest/store"


def kind_of(tmp_path: Path, *lines: str, folder: str = f"{VOLUME}/keys") -> str | None:
    table = tmp_path / "mountinfo"
    table.write_text("".join(f"{line}\n" for line in lines))
    return ephemeral_kind(Path(folder), table)


def mount(filesystem: str, *, root: str = "/", at: str = VOLUME, options: str = "") -> str:
    return f"700 607 0:60 {root} {at} rw,relatime{options} - {filesystem} {filesystem} rw,size=65536k"


def test_a_disk_is_durable(tmp_path: Path) -> None:
    """A folder on ext4 is on a volume that stays."""
    assert kind_of(tmp_path, PROC, ROOT) is None
    assert kind_of(tmp_path, OVERLAY_ROOT, mount("ext4")) is None


@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs", "nfs4", "ext2", "fuse.sshfs", "virtiofs"])
def test_durable_filesystems(tmp_path: Path, filesystem: str) -> None:
    """A persistent volume of any file system is durable, though the container's own root is not."""
    assert kind_of(tmp_path, OVERLAY_ROOT, mount(filesystem)) is None


@pytest.mark.parametrize("filesystem", ["tmpfs", "ramfs", "overlay", "aufs"])
def test_ephemeral_filesystems(tmp_path: Path, filesystem: str) -> None:
    """Memory and container layers die with the pod, and are told by name."""
    assert filesystem == kind_of(tmp_path, ROOT, mount(filesystem))


def test_a_containers_own_root(tmp_path: Path) -> None:
    """A folder for which nothing was mounted is in the container's layer."""
    assert "overlay" == kind_of(tmp_path, OVERLAY_ROOT, PROC)


def test_an_empty_dir_on_a_disk(tmp_path: Path) -> None:
    """An emptyDir is a folder of the node's disk that dies with the pod: the mount's root tells it."""
    root = f"{PODS}/volumes/kubernetes.io~empty-dir/data"
    assert "emptyDir" == kind_of(tmp_path, OVERLAY_ROOT, mount("ext4", root=root))


def test_an_empty_dir_in_memory(tmp_path: Path) -> None:
    """An emptyDir of medium Memory is a tmpfs."""
    assert "tmpfs" == kind_of(tmp_path, OVERLAY_ROOT, mount("tmpfs"))


@pytest.mark.parametrize("plugin", ["kubernetes.io~local-volume", "kubernetes.io~csi", "kubernetes.io~nfs"])
def test_persistent_volumes_of_kubernetes(tmp_path: Path, plugin: str) -> None:
    """Other volumes of the kubelet are durable."""
    assert kind_of(tmp_path, OVERLAY_ROOT, mount("ext4", root=f"{PODS}/volumes/{plugin}/data")) is None


def test_the_deepest_mount_counts(tmp_path: Path) -> None:
    """The mount nearest to the folder tells, whatever the order of the lines."""
    lines = [mount("tmpfs", at="/kmstest"), mount("ext4"), mount("tmpfs", at=f"{VOLUME}/keys/deeper"), ROOT]
    assert kind_of(tmp_path, *lines) is None
    assert kind_of(tmp_path, *reversed(lines)) is None
    assert "tmpfs" == kind_of(tmp_path, *lines, folder="/kmstest/other")
    assert "tmpfs" == kind_of(tmp_path, *lines, folder=f"{VOLUME}/keys/deeper/still")


def test_the_mount_point_itself(tmp_path: Path) -> None:
    """A folder that is the mount point is on that volume."""
    assert "tmpfs" == kind_of(tmp_path, ROOT, mount("tmpfs"), folder=VOLUME)


def test_a_mount_over_a_mount(tmp_path: Path) -> None:
    """Of two mounts at one place the later one is seen."""
    assert "tmpfs" == kind_of(tmp_path, ROOT, mount("ext4"), mount("tmpfs"))
    assert kind_of(tmp_path, ROOT, mount("tmpfs"), mount("ext4")) is None


def test_a_name_that_only_begins_alike(tmp_path: Path) -> None:
    """Paths are compared by their parts: /kmstest/store2 is not below /kmstest/store."""
    assert kind_of(tmp_path, ROOT, mount("tmpfs"), folder=f"{VOLUME}2/keys") is None


def test_escaped_names(tmp_path: Path) -> None:
    """The kernel writes space, tab and backslash of a path as octal numbers."""
    escaped = r"/kmstest/my\040big\011\134store"
    assert "tmpfs" == kind_of(tmp_path, ROOT, mount("tmpfs", at=escaped), folder="/kmstest/my big\t\\store/keys")
    root = f"{PODS}/my\\040volumes/kubernetes.io~empty-dir/data"
    assert "emptyDir" == kind_of(
        tmp_path, ROOT, mount("ext4", at=escaped, root=root), folder="/kmstest/my big\t\\store"
    )


@pytest.mark.parametrize("options", ["", " shared:5", " shared:5 master:1", " master:1 propagate_from:2 unbindable"])
def test_optional_fields(tmp_path: Path, options: str) -> None:
    """Any number of optional fields may stand before the separator."""
    assert "tmpfs" == kind_of(tmp_path, ROOT, mount("tmpfs", options=options))


def test_links_are_followed(tmp_path: Path) -> None:
    """The volume is that of the folder a link leads to."""
    target = tmp_path / "target"
    target.mkdir()
    link = tmp_path / "link"
    link.symlink_to(target)
    assert "tmpfs" == kind_of(tmp_path, ROOT, mount("tmpfs", at=str(target.resolve())), folder=str(link / "keys"))


def test_no_mount_table(tmp_path: Path) -> None:
    """Where there is no mount table nothing is known, and nothing is refused."""
    assert ephemeral_kind(tmp_path, tmp_path / "missing") is None


def test_a_path_that_is_not_ascii(tmp_path: Path) -> None:
    """The kernel escapes blanks as octal digits and writes everything else as it is."""
    mounts = (ROOT, mount("tmpfs", at="/mnt/données\\040ici"))
    assert kind_of(tmp_path, *mounts, folder="/mnt/données ici/kms") == "tmpfs"
    assert kind_of(tmp_path, *mounts, folder="/mnt/données/kms") is None
