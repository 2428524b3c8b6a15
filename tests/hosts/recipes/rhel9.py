# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in for RHEL 9: Debian 12's binaries (whose systemd and dnf are RHEL 9's releases) in RHEL's clothes.

os-release, dnf, the RPM database, paths, unit names, presets, users and groups are RHEL's; apt and dpkg are gone.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.hosts.programs import run, run_contained
from tests.hosts.recipes import debian, rpm
from tests.hosts.recipes.platform import Platform
from tests.hosts.recipes.rpm import Rpm, control_fields, upstream_version

PACKAGES = (
    "cron",
    "curl",
    "dnf",
    "gnupg",
    "libcap2-bin",
    "logrotate",
    "openssl",
    "passwd",
    "python3-dnf",
    "python3-selinux",
    "rpm",
    "tar",
)

OS_RELEASE = """\
NAME="Red Hat Enterprise Linux"
VERSION="9.4 (Plow)"
ID="rhel"
ID_LIKE="fedora"
VERSION_ID="9.4"
PLATFORM_ID="platform:el9"
PRETTY_NAME="Red Hat Enterprise Linux 9.4 (Plow), test stand-in"
CPE_NAME="cpe:/o:redhat:enterprise_linux:9::baseos"
"""

# What of the base RHEL has under a name of its own, so that the RPM database knows it: RHEL's name by Debian's.
IN_THE_BASE = {
    "acl": "acl",
    "bash": "bash",
    "ca-certificates": "ca-certificates",
    "coreutils": "coreutils",
    "cron": "cronie",
    "curl": "curl",
    "dbus": "dbus",
    "dnf": "dnf",
    "gnupg": "gnupg2",
    "iproute2": "iproute",
    "iputils-ping": "iputils",
    "kmod": "kmod",
    "less": "less",
    "libc6": "glibc",
    "logrotate": "logrotate",
    "netbase": "setup",
    "openssh-client": "openssh-clients",
    "openssh-server": "openssh-server",
    "openssl": "openssl",
    "passwd": "shadow-utils",
    "procps": "procps-ng",
    "python3": "python3",
    "python3-dnf": "python3-dnf",
    "python3-selinux": "python3-libselinux",
    "rpm": "rpm",
    "sudo": "sudo",
    "systemd": "systemd",
    "tar": "tar",
    "udev": "systemd-udev",
    "util-linux": "util-linux",
}
PROVIDED_BY_THE_BASE = {"bash": ("/bin/sh", "/bin/bash", "/usr/bin/sh"), "shadow-utils": ("user(root)", "group(root)")}

# What RHEL itself does not have: it lies in a signed repository as well, beside a key that no host trusts yet.
EPEL = ("fail2ban", "fail2ban-server", "fail2ban-systemd", "mosquitto")

INIT_SCRIPTS = ("etc/init.d", "etc/default")


def iptables_service(version: str) -> dict[str, str]:
    """Return the files of the service that loads saved rules, for `` (IPv4) or `6`."""
    program, reject = f"ip{version}tables", "icmp6-adm-prohibited" if version else "icmp-host-prohibited"
    return {
        f"etc/sysconfig/{program}": f"""\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with {reject}
COMMIT
""",
        f"etc/sysconfig/{program}-config": "".join(
            f'IP{version}TABLES_SAVE_ON_{occasion}="no"\n' for occasion in ("STOP", "RESTART")
        ),
        f"usr/libexec/iptables/{program}.init": f"""\
#!/bin/sh
saved=/etc/sysconfig/{program}
case $1 in
  start | reload) {program}-restore --wait <"$saved" ;;
  stop) {program} -P INPUT ACCEPT && {program} -F && {program} -X ;;
  save) {program}-save >"$saved" ;;
  *) exit 2 ;;
esac
""",
        f"usr/lib/systemd/system/{program}.service": f"""\
[Unit]
Description=Saved rules of {program}
AssertPathExists=/etc/sysconfig/{program}
Before=network-pre.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/libexec/iptables/{program}.init start
ExecReload=/usr/libexec/iptables/{program}.init reload
ExecStop=/usr/libexec/iptables/{program}.init stop
[Install]
WantedBy=multi-user.target
""",
    }


def dnf_automatic_unit(suffix: str, argument: str) -> dict[str, str]:
    """Return a service and a timer of dnf-automatic."""
    name = f"usr/lib/systemd/system/dnf-automatic{suffix}"
    return {
        f"{name}.service": f"""\
[Unit]
Description=dnf automatic{suffix.replace("-", " ")}
ConditionPathExists=!/run/ostree-booted
[Service]
Type=oneshot
ExecStart=/usr/bin/dnf-automatic /etc/dnf/automatic.conf --timer{argument}
""",
        f"{name}.timer": f"""\
[Unit]
Description=Time of dnf automatic{suffix.replace("-", " ")}
[Timer]
OnCalendar=*-*-* 6:00
RandomizedDelaySec=60m
Persistent=true
[Install]
WantedBy=timers.target
""",
    }


CHRONYD_SERVICE = """\
[Unit]
Description=NTP client/server
After=network.target
Conflicts=systemd-timesyncd.service ntpd.service
ConditionCapability=CAP_SYS_TIME
[Service]
Type=forking
PIDFile=/run/chrony/chronyd.pid
EnvironmentFile=-/etc/sysconfig/chronyd
ExecStart=/usr/sbin/chronyd -u chrony $OPTIONS
[Install]
WantedBy=multi-user.target
"""

CHRONY_CONF = """\
pool 2.rhel.pool.ntp.org iburst
sourcedir /run/chrony-dhcp
driftfile /var/lib/chrony/drift
makestep 1.0 3
rtcsync
keyfile /etc/chrony.keys
ntsdumpdir /var/lib/chrony
logdir /var/log/chrony
"""

DNF_AUTOMATIC_CONF = """\
[commands]
upgrade_type = default
random_sleep = 0
network_online_timeout = 60
download_updates = yes
apply_updates = no
reboot = never
[emitters]
emit_via = stdio
[base]
debuglevel = 1
"""

SSHD_SERVICE = """\
[Unit]
Description=OpenSSH server daemon
After=network.target
[Service]
Type=notify
EnvironmentFile=-/etc/sysconfig/sshd
ExecStart=/usr/sbin/sshd -D $OPTIONS
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
RestartSec=42s
RuntimeDirectory=sshd
RuntimeDirectoryMode=0755
RuntimeDirectoryPreserve=yes
[Install]
WantedBy=multi-user.target
"""

CROND_SERVICE = """\
[Unit]
Description=Command Scheduler
After=systemd-user-sessions.service
[Service]
EnvironmentFile=-/etc/sysconfig/crond
ExecStart=/usr/sbin/crond -f $CRONDARGS
ExecReload=/bin/kill -HUP $MAINPID
KillMode=process
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""

OFFERED = (
    Rpm("audit", debs=("auditd",), drops=INIT_SCRIPTS, units=("auditd.service",)),
    Rpm(
        "chrony",
        debs=("chrony",),
        drops=(*INIT_SCRIPTS, "etc/*", "usr/lib/systemd/*", "usr/lib/NetworkManager"),
        files={
            "etc/chrony.conf": CHRONY_CONF,
            "etc/chrony.keys": "",
            "etc/sysconfig/chronyd": 'OPTIONS="-F 2"\n',
            "usr/lib/systemd/system/chronyd.service": CHRONYD_SERVICE,
        },
        # Debian's binary looks here unless told otherwise.
        links={"etc/chrony/chrony.conf": "../chrony.conf"},
        units=("chronyd.service",),
        user="chrony",
        owned=("var/lib/chrony", "var/log/chrony"),
    ),
    Rpm(
        "dnf-automatic",
        version="4.14.0",
        requires=("dnf",),
        files={
            "etc/dnf/automatic.conf": DNF_AUTOMATIC_CONF,
            "usr/bin/dnf-automatic": "#!/usr/bin/python3\nimport sys\n\nfrom dnf.automatic.main import main\n\n"
            "sys.exit(main(sys.argv[1:]))\n",
            **dnf_automatic_unit("", ""),
            **dnf_automatic_unit("-download", " --downloadupdates --no-installupdates"),
            **dnf_automatic_unit("-install", " --downloadupdates --installupdates"),
            **dnf_automatic_unit("-notifyonly", " --no-downloadupdates --no-installupdates"),
        },
        units=(
            "dnf-automatic.timer",
            "dnf-automatic-download.timer",
            "dnf-automatic-install.timer",
            "dnf-automatic-notifyonly.timer",
        ),
    ),
    Rpm("fail2ban", version="1.0.2", requires=("fail2ban-server",)),
    Rpm(
        "fail2ban-server",
        debs=("fail2ban",),
        drops=(*INIT_SCRIPTS, "etc/fail2ban/jail.d/defaults-debian.conf", "etc/fail2ban/paths-[!c]*.conf"),
        edits={"etc/fail2ban/jail.conf": ("before = paths-debian.conf", "before = paths-fedora.conf")},
        files={
            "etc/fail2ban/paths-fedora.conf": """\
[INCLUDES]
before = paths-common.conf
after = paths-overrides.local
[DEFAULT]
syslog_mail = /var/log/maillog
syslog_authpriv = /var/log/secure
syslog_user = /var/log/messages
syslog_daemon = /var/log/messages
"""
        },
        requires=("fail2ban-systemd",),
        units=("fail2ban.service",),
    ),
    Rpm(
        "fail2ban-systemd",
        version="1.0.2",
        requires=("python3-systemd",),
        files={"etc/fail2ban/jail.d/00-systemd.conf": "[DEFAULT]\nbackend = systemd\n"},
    ),
    Rpm(
        "firewalld",
        debs=("firewalld",),
        drops=("etc/init.d",),
        links={
            "usr/share/polkit-1/actions/org.fedoraproject.FirewallD1.policy": (
                "org.fedoraproject.FirewallD1.server.policy.choice"
            )
        },
        units=("firewalld.service",),
    ),
    Rpm(
        "iptables-nft",
        debs=("iptables",),
        drops=("usr/sbin/*legacy*", "usr/bin/iptables-xml"),
        links={
            f"usr/sbin/ip{version}tables{verb}": "xtables-nft-multi"
            for version in ("", "6")
            for verb in ("", "-restore", "-save")
        },
        provides=("iptables",),
    ),
    Rpm(
        "iptables-nft-services",
        version="1.8.9",
        requires=("iptables-nft",),
        provides=("iptables-services",),
        files={**iptables_service(""), **iptables_service("6")},
        units=("iptables.service", "ip6tables.service"),
    ),
    Rpm("libpwquality", debs=("libpwquality1", "libpwquality-common", "libpam-pwquality")),
    Rpm(
        "mosquitto",
        debs=("mosquitto", "mosquitto-clients"),
        drops=(*INIT_SCRIPTS, "etc/mosquitto/*"),
        files={"etc/mosquitto/mosquitto.conf": "listener 1883 127.0.0.1\nallow_anonymous true\n"},
        units=("mosquitto.service",),
        user="mosquitto",
        owned=("var/lib/mosquitto", "var/log/mosquitto"),
    ),
    # firewalld asks it who may do what.
    Rpm("polkit", debs=("polkitd",), user="polkitd"),
    Rpm("nftables", debs=("nftables",), units=("nftables.service",)),
    Rpm("python3-systemd", debs=("python3-systemd",)),
    # Its standard library is that of the base's own Python.
    Rpm("python3.11", version="3.11.2", copies={"usr/bin/python3.11": "usr/libexec/platform-python3.11"}),
    Rpm(
        "rsyslog",
        debs=("rsyslog",),
        drops=(*INIT_SCRIPTS, "etc/logcheck"),
        files={
            "etc/rsyslog.conf": """\
global(workDirectory="/var/lib/rsyslog")
module(load="imuxsock" SysSock.Use="on")
include(file="/etc/rsyslog.d/*.conf" mode="optional")
*.info;mail.none;authpriv.none;cron.none /var/log/messages
authpriv.* /var/log/secure
cron.* /var/log/cron
""",
            "etc/sysconfig/rsyslog": 'SYSLOGD_OPTIONS=""\n',
        },
        units=("rsyslog.service",),
    ),
    Rpm("sshpass", debs=("sshpass",)),
)


def write(root: Path, name: str, text: str, mode: int = 0o644) -> None:
    """Write a file of the host, and the directories above it."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)


def link(root: Path, name: str, target: str) -> None:
    """Make a symbolic link on the host."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def installed_versions(root: Path) -> dict[str, str]:
    """Return the version of every Debian package in the base, from dpkg's database."""
    status = (root / "var/lib/dpkg/status").read_text(encoding="utf-8")
    fields = [control_fields(paragraph) for paragraph in status.split("\n\n")]
    return {each["Package"]: each["Version"] for each in fields if each.get("Status") == "install ok installed"}


def entries(installed: dict[str, str]) -> list[Rpm]:
    """Return the empty RPMs by which the database knows what the base holds."""
    known = [
        Rpm(name, version=upstream_version(installed[deb]), provides=PROVIDED_BY_THE_BASE.get(name, ()))
        for deb, name in IN_THE_BASE.items()
    ]
    release = ("system-release = 9.4", "system-release(releasever) = 9", "redhat-release(releasever) = 9")
    return [*known, Rpm("redhat-release", version="9.4", provides=release)]


def remove_debian_tools(root: Path) -> None:
    """Take away apt and dpkg, with all that belongs to them."""
    for package in ("apt", "dpkg", "init-system-helpers"):
        for line in (root / f"var/lib/dpkg/info/{package}.list").read_text(encoding="utf-8").splitlines():
            path = root / line.lstrip("/")
            # /bin and its like are links to directories.
            if not path.is_dir() and (path.is_symlink() or path.exists()):
                path.unlink()
    for directory in ("etc/apt", "etc/dpkg", "var/lib/apt", "var/lib/dpkg", "var/cache/apt", "var/cache/debconf"):
        shutil.rmtree(root / directory)
    # Init scripts would come back as units under Debian's names.
    for levels in (root / "etc").glob("rc?.d"):
        shutil.rmtree(levels)
    shutil.rmtree(root / "etc/init.d")
    for wants in (root / "etc/systemd/system").glob("*.wants/*"):
        if not (root / str(wants.readlink()).lstrip("/")).exists():
            wants.unlink()


def dress(root: Path) -> None:
    """Give the root RHEL's identity, layout, units, presets and groups."""
    for name in ("etc/debian_version", "etc/issue", "etc/issue.net"):
        (root / name).unlink(missing_ok=True)
    write(root, "usr/lib/os-release", OS_RELEASE)
    link(root, "etc/os-release", "../usr/lib/os-release")
    write(root, "etc/redhat-release", "Red Hat Enterprise Linux release 9.4 (Plow)\n")
    link(root, "etc/system-release", "redhat-release")

    # The journal is kept over a reboot only by whoever asks for it.
    shutil.rmtree(root / "var/log/journal")
    for name in ("etc/pki/rpm-gpg", "etc/pki/ca-trust/source/anchors", "etc/sysconfig"):
        (root / name).mkdir(parents=True)
    link(root, "etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/certs/ca-certificates.crt")
    link(root, "usr/libexec/openssh/sftp-server", "/usr/lib/openssh/sftp-server")
    # Only the RPM python3.11 brings /usr/bin/python3.11.
    (root / "usr/bin/python3.11").rename(root / "usr/libexec/platform-python3.11")
    link(root, "usr/bin/python3", "/usr/libexec/platform-python3.11")
    link(root, "usr/libexec/platform-python", "/usr/bin/python3")
    link(root, "usr/bin/sh", "bash")
    link(root, "usr/bin/dnf", "dnf-3")
    link(root, "usr/bin/yum", "dnf-3")
    link(root, "usr/sbin/crond", "cron")

    renamed = {"ssh.service", "ssh@.service", "ssh.socket", "sshd.service", "cron.service"}
    for directory in ("usr/lib/systemd/system", "etc/systemd/system"):
        for unit in [*(root / directory).rglob("*")]:
            if unit.name in renamed:
                unit.unlink()
    for name, text in {"sshd.service": SSHD_SERVICE, "crond.service": CROND_SERVICE}.items():
        write(root, f"usr/lib/systemd/system/{name}", text)
        link(root, f"etc/systemd/system/multi-user.target.wants/{name}", f"/usr/lib/systemd/system/{name}")
    presets = "usr/lib/systemd/system-preset"
    shutil.rmtree(root / presets)
    enabled = (
        "auditd.service",
        "chronyd.service",
        "crond.service",
        "logrotate.timer",
        "rsyslog.service",
        "sshd.service",
    )
    write(
        root, f"{presets}/90-default.preset", "".join(f"enable {unit}\n" for unit in (*enabled, "dbus*", "systemd-*"))
    )
    write(root, f"{presets}/99-default-disable.preset", "disable *\n")

    dress_access(root)
    write(
        root,
        "etc/dnf/dnf.conf",
        "[main]\ngpgcheck=0\ninstallonly_limit=3\nclean_requirements_on_remove=True\nbest=True\nskip_if_unavailable=False\n",
    )
    write(
        root,
        "etc/yum.repos.d/offline.repo",
        # The packages are unsigned. Said here as well: Ansible's dnf module overrides what dnf.conf says of it.
        "[offline]\nname=Offline packages\nbaseurl=file:///srv/packages\nenabled=1\nmetadata_expire=never\ngpgcheck=0\n",
    )
    # Debian's rpm would keep a database in each user's home.
    write(root, "etc/rpm/macros.dbpath", "%_dbpath /var/lib/rpm\n")


def dress_access(root: Path) -> None:
    """Give the root RHEL's way in: sshd's configuration, sudoers and group wheel."""
    for name in ("ssh", "cron"):
        (root / "etc/default" / name).unlink()
    write(root, "etc/sysconfig/sshd", "")
    write(root, "etc/sysconfig/crond", 'CRONDARGS=""\n')
    write(
        root,
        "etc/ssh/sshd_config",
        "Include /etc/ssh/sshd_config.d/*.conf\n"
        "AuthorizedKeysFile .ssh/authorized_keys\n"
        "Subsystem sftp /usr/libexec/openssh/sftp-server\n",
        mode=0o600,
    )
    (root / "etc/ssh/sshd_config.d").chmod(0o700)
    write(
        root,
        "etc/ssh/sshd_config.d/50-redhat.conf",
        "SyslogFacility AUTHPRIV\n"
        "ChallengeResponseAuthentication no\n"
        "GSSAPIAuthentication yes\n"
        "GSSAPICleanupCredentials no\n"
        "UsePAM yes\n"
        "X11Forwarding yes\n"
        "PrintMotd no\n",
        mode=0o600,
    )
    write(
        root,
        "etc/sudoers",
        "Defaults env_reset\n"
        "Defaults secure_path = /sbin:/bin:/usr/sbin:/usr/bin\n"
        "root ALL=(ALL) ALL\n"
        "%wheel ALL=(ALL) ALL\n"
        "#includedir /etc/sudoers.d\n",
        mode=0o440,
    )
    run("chroot", root, "groupdel", "sudo")
    (root / "usr/lib/sysusers.d/basic.conf").unlink()
    # RHEL's wheel has the number that is uucp's on Debian.
    run("chroot", root, "groupmod", "--gid", "990", "uucp")
    run("chroot", root, "groupadd", "--gid", "10", "wheel")


def build(root: Path, repository: Path) -> None:
    """Bootstrap Debian 12, dress it, and make RPMs of what RHEL's repositories and EPEL would offer."""
    debs = sorted({deb for each in OFFERED for deb in each.debs})
    with tempfile.TemporaryDirectory(dir=repository.parent) as scratch:
        downloads = Path(scratch, "debs")
        debian.bootstrap(root, PACKAGES, downloads, debs)
        base_entries = entries(installed_versions(root))
        debian.make_host(root)
        dress(root)
        remove_debian_tools(root)
        rpm.build([*OFFERED, *base_entries], sorted(downloads.glob("*.deb")), root, repository)
        rpm.sign_copies(repository, EPEL, repository / "epel")

    debian.never_fire(
        root, "dnf-automatic.timer", *(f"dnf-automatic-{what}.timer" for what in ("download", "install", "notifyonly"))
    )
    # chronyd runs, measures and reports without the right to set this machine's clock, which no test host has.
    debian.add_drop_in(
        root,
        "chronyd.service",
        "[Unit]\nConditionCapability=\n[Service]\nExecStart=\nExecStart=/usr/sbin/chronyd -u chrony $OPTIONS -x\n",
    )
    names = " ".join(f"/srv/packages/*/{each.name}-{each.version}-{rpm.RELEASE}.*.rpm" for each in base_entries)
    register = (
        'mount --bind "$2" "$1/srv/packages" && '
        f'chroot "$1" sh -c "rpm --initdb && rpm --upgrade --justdb --noscripts {names} && dnf --quiet makecache"'
    )
    run_contained("sh", "-c", register, "sh", root, repository)


PLATFORM = Platform(
    name="rhel9",
    programs={**debian.BUILD_PROGRAMS, "rpmbuild": "rpm", "createrepo_c": "createrepo-c", "gpg": "gnupg"},
    sources=(Path(__file__), Path(debian.__file__), Path(rpm.__file__)),
    build=build,
)
