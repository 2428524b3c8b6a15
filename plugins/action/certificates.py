# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.basic import missing_required_lib
from ansible.plugins.action import ActionBase
from ansible_collections.derms.edge.plugins.plugin_utils.certificates import (
    CRYPTOGRAPHY_IMPORT_ERROR,
    EXPIRING,
    MISSING,
    OK,
    USAGES,
    Bundle,
    Finding,
    Request,
    authority_key_flaw,
    examine,
    examine_authority,
    examine_issued,
    has_usable_key,
)

PEM_START = "-----BEGIN "
# What stands for a certificate that a dry run cannot know, because the real run will issue it.
TO_BE_ISSUED = "to be issued\n"

PROVIDED_OPTIONS = {
    "name": {"type": "str", "required": True},
    "certificate": {"type": "str", "required": True},
    "private_key": {"type": "str", "required": True, "no_log": True},
    "chain": {"type": "str"},
    "ca": {"type": "str", "required": True},
}
ISSUED_OPTIONS = {
    "name": {"type": "str", "required": True},
    "common_name": {"type": "str", "required": True},
    "subject_alt_names": {"type": "list", "elements": "str", "default": []},
    "usage": {"type": "str", "choices": list(USAGES), "default": "client"},
    "install": {"type": "bool", "default": True},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "state": {"type": "str", "choices": ["inspected", "installed"], "required": True},
    "source": {"type": "str", "choices": ["ownca", "provided"], "required": True},
    "provided": {"type": "list", "elements": "dict", "default": [], "options": PROVIDED_OPTIONS},
    "issued": {"type": "list", "elements": "dict", "default": [], "options": ISSUED_OPTIONS},
    "pki_directory": {"type": "str", "required": True},
    "directory": {"type": "str", "default": "/etc/derms/certs"},
    "passphrase": {"type": "str", "no_log": True},
    "warn_days": {"type": "int", "default": 30},
    "renew_days": {"type": "int", "default": 30},
    "valid_days": {"type": "int", "default": 397},
}


@dataclass(frozen=True)
class Judged:
    """A bundle, what was found out about it, and what is to become of it."""

    bundle: Bundle
    finding: Finding
    request: Request | None = None  # None: it was provided
    install: bool = True

    @property
    def must_be_issued(self) -> bool:
        """Whether the depot's own authority has to issue it, for the first time or anew."""
        return self.request is not None and (not self.finding.sound or self.finding.state == EXPIRING)

    def reason(self) -> str:
        """Return why the bundle is not simply left alone."""
        return self.finding.problem or self.finding.state


def file_bytes(path: Path) -> bytes | None:
    """Return what a file holds, or None if it is not there."""
    return path.read_bytes() if path.is_file() else None


class ActionModule(ActionBase):  # type: ignore[misc] # Ansible's classes carry no types
    """Inspect certificates on the control node, and put the sound ones on the gateway."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Inspect every bundle; with state installed, also compare and replace the gateway's files."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = dict(task_vars or {})
        if CRYPTOGRAPHY_IMPORT_ERROR:
            raise AnsibleActionFail(missing_required_lib("cryptography"))
        _validation, options = self.validate_argument_spec(OPTIONS)
        now = datetime.now(timezone.utc)
        pki = Path(options["pki_directory"])
        host = str(variables["inventory_hostname"])
        judged = [
            *self._provided(options, Path(variables.get("inventory_dir") or Path.cwd()), now),
            *self._issued(options, pki, host, now),
        ]
        if options["state"] == "inspected":
            result.update(self._inspection(options, judged, pki, variables, now))
        else:
            # A dry run cannot know what the real run will issue; outside check mode it has been issued by now.
            authority = examine_authority(file_bytes(pki / "ca.crt"), now, options["valid_days"])
            new_authority = self._task.check_mode and authority.state != OK
            result.update(self._installation(options, judged, variables, new_authority=new_authority))
        return result

    def _pem(self, given: str, directory: Path) -> bytes | None:
        """Return PEM text that was given as such, or by its file, which may be encrypted by ansible-vault."""
        if given.lstrip().startswith(PEM_START) or "\n" in given:
            return given.encode()
        path = directory / given
        try:
            if not path.is_file():
                return None
        except OSError:  # too long for a name, so perhaps PEM text without its first line: not to be quoted
            return None
        try:
            return str(self._loader.get_text_file_contents(str(path))).encode()
        except AnsibleError as error:
            raise AnsibleActionFail(f"{path} cannot be read: {error}") from error

    def _provided(self, options: Mapping[str, Any], directory: Path, now: datetime) -> list[Judged]:
        """Judge the bundles that the utility's operator provided."""
        judged = []
        for entry in options["provided"]:
            bundle = Bundle(
                name=entry["name"],
                certificate=self._pem(entry["certificate"], directory),
                private_key=self._pem(entry["private_key"], directory),
                authority=self._pem(entry["ca"], directory),
                chain=self._pem(entry["chain"], directory) if entry["chain"] else b"",
            )
            finding = examine(bundle, now, options["warn_days"])
            if finding.state == MISSING:
                # The private key is not looked for here: what was meant as its PEM text must not be taken for a path.
                absent = [
                    entry[option]
                    for option, pem in (
                        ("certificate", bundle.certificate),
                        ("chain", bundle.chain),
                        ("ca", bundle.authority),
                    )
                    if pem is None
                ]
                where = f" ({', '.join(absent)} in {directory})" if absent else ""
                finding = replace(finding, problem=finding.problem + where)
            judged.append(Judged(bundle, finding))
        return judged

    def _issued(self, options: Mapping[str, Any], pki: Path, host: str, now: datetime) -> list[Judged]:
        """Judge the bundles of the depot's own authority; a provided one takes the place of its namesake."""
        if options["source"] == "provided":
            return []
        provided = {entry["name"] for entry in options["provided"]}
        judged = []
        for entry in options["issued"]:
            if entry["name"] in provided:
                continue
            request = Request(entry["name"], entry["common_name"], tuple(entry["subject_alt_names"]), entry["usage"])
            bundle = Bundle(
                name=entry["name"],
                certificate=file_bytes(pki / host / f"{entry['name']}.crt"),
                private_key=file_bytes(pki / host / f"{entry['name']}.key"),
                authority=file_bytes(pki / "ca.crt"),
            )
            finding = examine_issued(bundle, request, now, options["renew_days"])
            judged.append(Judged(bundle, finding, request, entry["install"]))
        return judged

    def _inspection(
        self, options: Mapping[str, Any], judged: list[Judged], pki: Path, variables: Mapping[str, Any], now: datetime
    ) -> dict[str, Any]:
        """Return what is wrong and what has to be issued; fail for what cannot be put right by issuing."""
        unsound = [one for one in judged if one.request is None and not one.finding.sound]
        if unsound:
            reasons = "".join(f"\n- {one.bundle.name}: {one.reason()}" for one in unsound)
            raise AnsibleActionFail(f"certificates_provided is not fit to be used; nothing was copied{reasons}")
        to_issue = [one for one in judged if one.must_be_issued]
        authority = self._authority(options, pki, now, needed=bool(to_issue))
        make_authority = authority is not None and authority.state != OK
        drift = [
            {
                "what": f"certificate {one.bundle.name}",
                "is": one.reason(),
                "should_be": "issued by the depot's authority",
            }
            for one in to_issue
        ]
        if authority is not None and make_authority:
            drift.insert(
                0,
                {
                    "what": "the depot's authority",
                    "is": authority.problem,
                    "should_be": "made" if authority.state == MISSING else "renewed with the same key",
                },
            )
        checking = self._task.check_mode
        return {
            # The run that issues them reports each as a change of its own.
            "changed": checking and bool(drift),
            "drift": drift if checking else [],
            "make_authority": make_authority and leads(variables),
            "to_issue": [issue_order(one) for one in to_issue],
            "bundles": [
                {
                    "name": one.bundle.name,
                    "state": one.finding.state,
                    "not_after": one.finding.not_after.isoformat() if one.finding.not_after else "",
                    "problem": one.finding.problem,
                }
                for one in judged
            ],
            "notes": [
                f"certificate {one.bundle.name}: {one.reason()}; ask the utility's operator for a new one"
                for one in judged
                if one.request is None and one.finding.state == EXPIRING
            ],
        }

    def _authority(self, options: Mapping[str, Any], pki: Path, now: datetime, *, needed: bool) -> Finding | None:
        """Judge the depot's own authority, its private key only where there is something to sign."""
        if options["source"] == "provided":
            return None
        certificate, key = file_bytes(pki / "ca.crt"), file_bytes(pki / "ca.key")
        finding = examine_authority(certificate, now, options["valid_days"])
        if certificate is None and key is None:
            return finding
        if needed or finding.state != OK:
            passphrase = options["passphrase"]
            flaw = authority_key_flaw(certificate, key, passphrase.encode() if passphrase else None)
            if flaw:
                raise AnsibleActionFail(
                    f"the depot's authority in {pki} cannot sign: {flaw}. Put its ca.key back (and its passphrase into "
                    "certificates_ca_passphrase), or take the directory away to begin a new authority."
                )
        return finding

    def _installation(
        self, options: Mapping[str, Any], judged: list[Judged], variables: dict[str, Any], *, new_authority: bool
    ) -> dict[str, Any]:
        """Compare the gateway's files with the sound bundles, and outside check mode replace what differs."""
        checking = self._task.check_mode
        wanted = [one for one in judged if one.install]
        unsound = [one for one in wanted if not one.finding.sound and not (checking and one.must_be_issued)]
        if unsound:
            reasons = "".join(f"\n- {one.bundle.name}: {one.reason()}" for one in unsound)
            raise AnsibleActionFail(f"certificates are not fit to be used; nothing was copied{reasons}")
        arguments = {
            "directories": [
                {"path": str(Path(options["directory"]).parent), "mode": "0755"},
                {"path": options["directory"], "mode": "0700"},
            ],
            "files": [
                {
                    "path": f"{options['directory']}/{name}",
                    "content": TO_BE_ISSUED if content is None else content.decode(),
                    "mode": "0600",
                    "no_diff": True,
                }
                for one in wanted
                for name, content in files_of(one, checking=checking, new_authority=new_authority).items()
            ],
        }
        # Ansible would otherwise write the arguments, private keys included, into the gateway's journal …
        quiet = {**variables, "ansible_no_target_syslog": True}
        result: dict[str, Any] = self._execute_module("derms.edge.validated_files", arguments, task_vars=quiet)
        # … and into the result.
        result.pop("invocation", None)
        return result


def leads(variables: Mapping[str, Any]) -> bool:
    """Say whether a host is the one of its depot, in this batch, on whose behalf the authority is made."""
    host, depot = variables["inventory_hostname"], variables["derms_depot"]
    hostvars = variables["hostvars"]
    return bool(
        host
        == next(one for one in variables["ansible_play_batch"] if one == host or hostvars[one]["derms_depot"] == depot)
    )


def issue_order(one: Judged) -> dict[str, Any]:
    """Return what the authority has to issue, in the words of community.crypto."""
    request = one.request
    if request is None:
        raise ValueError(f"{one.bundle.name} was provided, it cannot be issued")
    return {
        "name": request.name,
        "common_name": request.common_name,
        "subject_alt_names": list(request.alternative_names()),
        "extended_key_usage": list(USAGES[request.usage]),
        "new_key": not has_usable_key(one.bundle),
        "reason": one.reason(),
    }


def files_of(one: Judged, *, checking: bool, new_authority: bool) -> dict[str, bytes | None]:
    """Return a bundle's files; None stands for a content that is yet to be issued."""
    bundle = one.bundle
    certificate: bytes | None = (bundle.certificate or b"").rstrip() + b"\n" + (bundle.chain or b"")
    private_key, authority = bundle.private_key, bundle.authority
    if checking and one.must_be_issued:
        certificate = None
        private_key = private_key if has_usable_key(bundle) else None
    if one.request is not None and new_authority:
        authority = None
    return {
        f"{bundle.name}.crt": certificate,
        f"{bundle.name}.key": private_key,
        f"{bundle.name}.ca.crt": authority,
    }
