# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual machine: the stand-in for Ubuntu 22.04 on a disk, with Debian's kernel for virtual machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.hosts import ssh
from tests.hosts.addresses import Address
from tests.hosts.image import Base
from tests.hosts.programs import run
from tests.hosts.recipes import debian, ubuntu2204
from tests.hosts.settings import Settings

# auditd is what no other test host can run: no role manages it, and it must go on under those that harden the kernel.
PACKAGES = ("apparmor", "auditd", "initramfs-tools", "linux-image-cloud-amd64")
MODULES = ("virtio_blk", "virtio_net", "virtio_pci", "ext4")

MEMORY = "768M"
DISK = "4G"
QEMU = "qemu-system-x86_64"
PROGRAMS = {QEMU: "qemu-system-x86", "qemu-img": "qemu-utils", "mkfs.ext4": "e2fsprogs"}


def sources(settings: Settings) -> tuple[Path, ...]:
    """Return the files that make up the machine.

    One of them is the emulator: a machine's memory is read back only by what wrote it. Another is the key that the
    machine lets in.
    """
    emulator = shutil.which(QEMU)
    recipes = (Path(__file__), Path(ubuntu2204.__file__), Path(debian.__file__))
    return (*recipes, settings.private_key.with_suffix(".pub"), *([Path(emulator)] if emulator else []))


def network_unit(settings: Settings, address: Address) -> str:
    """Return systemd-networkd's account of the machine's one interface."""
    return f"""\
[Match]
Type=ether

[Network]
Address={address.ipv4}/{settings.network.prefixlen}
Gateway={settings.network[1]}
LinkLocalAddressing=ipv6
IPv6AcceptRA=no

[Address]
Address={address.ipv6}/{settings.network6.prefixlen}
DuplicateAddressDetection=none
"""


def fill_root(root: Path, base: Base, settings: Settings, address: Address, authorized_key: str) -> None:
    """Make a machine's root out of the containers' base: its packages, repository and user, and what a machine adds."""
    run("cp", "--archive", base.root, root)
    # In the vendors' places: /etc stays the roles' own.
    for kind, text in (("conf.d", "MODULES=list\n"), ("modules.d", "".join(f"{module}\n" for module in MODULES))):
        directory = root / "usr/share/initramfs-tools" / kind
        directory.mkdir(parents=True)
        (directory / "test-host").write_text(text, encoding="ascii")
    install = (
        'mount --bind "$2" "$1/srv/packages" && mount -t proc proc "$1/proc" && root=$1 && shift 2 && '
        'chroot "$root" apt-get --quiet --yes --no-install-recommends install "$@"'
    )
    run("unshare", "--mount", "sh", "-c", install, "sh", root, base.packages, *PACKAGES)
    run("cp", "--archive", f"{base.packages}/.", root / "srv/packages")
    # A clock of its own: chronyd may set it.
    shutil.rmtree(root / "usr/lib/systemd/system/chrony.service.d")

    (root / "usr/lib/systemd/network/10-test-host.network").write_text(
        network_unit(settings, address), encoding="ascii"
    )
    run("systemctl", f"--root={root}", "enable", "systemd-networkd.service")
    (root / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\n", encoding="ascii")
    (root / "etc/hostname").write_text("vm\n", encoding="ascii")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vm\n::1 localhost vm\n", encoding="ascii")
    ssh.make_host_keys(root)
    home = root / "home" / ssh.USER
    owner = home.stat()
    keys = home / ".ssh/authorized_keys"
    keys.parent.mkdir(mode=0o700)
    keys.write_text(authorized_key, encoding="ascii")
    keys.chmod(0o600)
    for path in (keys.parent, keys):
        os.chown(path, owner.st_uid, owner.st_gid)


def make_disk(root: Path, disk: Path) -> None:
    """Put a root on a disk without a partition table."""
    raw = disk.with_suffix(".raw")
    run("truncate", f"--size={DISK}", raw)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, raw)
    run("qemu-img", "convert", "-O", "qcow2", raw, disk)
    raw.unlink()


def command(
    *, kernel: Path, initrd: Path, disk: Path, tap: str, mac: str, control: Path, state: Path | None
) -> Sequence[str]:
    """Return the emulator's command line: a machine that boots, or one that goes on from a saved state.

    A state is read back only into the same machine, so nothing but paths may differ between the two. Emulated in
    software everywhere: the machine is the same with and without /dev/kvm.
    """
    return [
        QEMU,
        "-name", "derms-vm",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35",
        "-accel", "tcg,thread=multi",
        # No newer vector instructions, which the libraries would take and which are slow to emulate.
        "-cpu", "Nehalem",
        "-smp", "2",
        "-m", MEMORY,
        "-kernel", str(kernel),
        "-initrd", str(initrd),
        # Guards against a real processor's flaws only cost time on one that is emulated.
        "-append", "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off loglevel=5",
        "-drive", f"file={disk},format=qcow2,if=virtio,cache=unsafe,discard=unmap",
        "-netdev", f"tap,id=bridge,ifname={tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=bridge,mac={mac},romfile=",
        "-serial", "stdio",
        "-qmp", f"unix:{control},server=on,wait=off",
        *(["-incoming", f"exec:cat {state}"] if state else []),
    ]  # fmt: skip
