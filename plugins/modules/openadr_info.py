#!/usr/bin/python
# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: openadr_info
short_description: How far an OpenADR 2.0b VTN can be reached from a gateway, stage by stage
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - Looks for a utility's VTN as the grid gateway does, and tells for each stage whether it went well, how long it took,
    and if not, why and what to do. The stages are the host's address, a TCP connection, the TLS handshake in which the
    VTN's certificate is verified, whether the VTN accepts the gateway's certificate, and its answer to
    C(oadrQueryRegistration).
  - With TLS 1.3 a VTN refuses a client's certificate only after the handshake, some of them without a word. What is
    said of it comes from the answer to the query, or from how the connection ends, which is tried again before a
    crash of the VTN is taken for a refusal.
  - Nothing is registered, and nothing is ever polled, for a second poller takes the service's events away. So it may be
    used while the grid gateway runs, and before there is one.
  - A VTN that cannot be reached is a result, and no failure. RV(notes) has it for the recap.
options:
  vtn_url:
    description:
      - The VTN's address, C(https), as in C(VTN_URL) of C(agent.conf). Without a port 443 is taken, and without a path
        C(/OpenADR2/Simple/2.0b).
    type: str
    required: true
  certificate_path:
    description: The client certificate on the gateway; without one, none is shown.
    type: path
  private_key_path:
    description: Its private key on the gateway.
    type: path
  ca_path:
    description: The authorities that the VTN's certificate may come from; the system's own if none are named.
    type: path
  fingerprint:
    description: The fingerprint that the VTN's certificate is to have, SHA-256, whole or its last ten bytes.
    type: str
  tls_minimum:
    description: The oldest version of TLS that is accepted.
    type: str
    choices: ["1.2", "1.3"]
    default: "1.3"
  xml_signatures:
    description:
      - Whether the query is signed, V(sign), and whether its answer has to be as well, V(require); C(XML_SIGNATURES) of
        C(agent.conf). Needs O(certificate_path), and O(ca_path) or O(fingerprint).
    type: str
    choices: [none, sign, require]
    default: none
  timeout_s:
    description: For how many seconds a connection, and then the answer to the query, is waited for.
    type: float
    default: 10
extends_documentation_fragment:
  - derms.edge.only_reads
  - derms.edge.grid_gateway
seealso:
  - module: derms.edge.openadr_events_info
  - module: derms.edge.openadr_ven
  - module: derms.edge.tls_probe
"""

EXAMPLES = r"""
- name: See how far the utility's VTN can be reached
  derms.edge.openadr_info:
    vtn_url: "{{ derms_vtn_url }}"
    certificate_path: /etc/derms/certs/grid-gateway.crt
    private_key_path: /etc/derms/certs/grid-gateway.key
    ca_path: /etc/derms/certs/grid-gateway.ca.crt
  register: vtn

- name: Insist that it answers, and that its certificate lasts another month
  ansible.builtin.assert:
    that:
      - vtn.reachable
      - vtn.chain[0].expires_in_days > 30
    fail_msg: "{{ vtn.notes | join('; ') }}"
"""

RETURN = r"""
reachable:
  description: Whether all stages went well, so that the VTN answered the query.
  type: bool
  returned: always
stages:
  description: The stages in their order.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: V(dns), V(tcp), V(tls), V(client_certificate) or V(registration_query).
      type: str
    status:
      description: >-
        V(ok), V(failed), V(not_tried), or V(unknown) where it needs the agent and there is none, or where it cannot be
        told.
      type: str
    reason:
      description: Why, where it is not V(ok).
      type: str
    advice:
      description: What to do about it.
      type: str
    latency_ms:
      description: >-
        How long it took in ms; none where it was not tried. A client certificate that was accepted has no time of its
        own, for the answer to the query shows it.
      type: float
  sample:
    - {name: dns, status: ok, reason: "", advice: "", latency_ms: 1.2}
    - {name: tcp, status: ok, reason: "", advice: "", latency_ms: 14.0}
    - name: tls
      status: failed
      reason: "unknown CA: the VTN's certificate is from an authority that CA_PATH does not hold"
      advice: put the authority that issued it into CA_PATH
      latency_ms: 41.3
    - {name: client_certificate, status: not_tried, reason: an earlier stage failed, advice: "", latency_ms: null}
    - {name: registration_query, status: not_tried, reason: an earlier stage failed, advice: "", latency_ms: null}
addresses:
  description: The host's addresses.
  type: list
  elements: str
  returned: always
  sample: ["203.0.113.7"]
tls_version:
  description: The version of TLS that was spoken; of a handshake that failed, what the VTN shows all the same.
  type: str
  returned: always
  sample: TLSv1.3
cipher:
  description: The cipher suite that was agreed on.
  type: str
  returned: always
  sample: TLS_AES_256_GCM_SHA384
chain:
  description: >-
    The certificates that the VTN shows, its own first; not verified where the stage V(tls) failed. The field sha256 of
    the first is what O(fingerprint) and C(VTN_FINGERPRINT) expect.
  type: list
  elements: dict
  returned: always
  sample:
    - subject: CN=vtn.example
      issuer: CN=Utility CA
      not_before: "2026-01-01T00:00:00+00:00"
      not_after: "2027-01-01T00:00:00+00:00"
      expires_in_days: 36.4
      sha256: 9f2c5a6e7d1b4c3a8e0f9d2b6a7c5e4f1a2b3c4d5e6f708192a3b4c5d6e7f809
registration:
  description: What the VTN answers to the query, or none. poll_s is how often it wants to be polled, in s.
  type: dict
  returned: always
  sample: {vtn_id: utility-1, poll_s: 10.0, profiles: [2.0b]}
clock_off_s:
  description: How far the gateway's clock is ahead of the VTN's, in s; none where it is not known.
  type: float
  returned: always
notes:
  description: The stage that failed, in words.
  type: list
  elements: str
  returned: always
  sample:
    - "VTN vtn.example:443: tcp failed: Connection refused; check the port in VTN_URL, and the firewalls on the way"
not_verified:
  description: What is unknown because there is no agent, where the task does not fail for that.
  type: list
  elements: str
  returned: always
"""

import socket
import time
from typing import Any
from urllib.parse import urlsplit

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.derms.edge.plugins.module_utils.device_state import NoAgent, ask

WITH_AGENT = ("tls", "client_certificate", "registration_query")
NOT_TRIED = "an earlier stage failed"
HTTPS = 443


def main() -> None:
    """Reach for a VTN and report."""
    module = AnsibleModule(
        argument_spec={
            "vtn_url": {"type": "str", "required": True},
            "certificate_path": {"type": "path"},
            "private_key_path": {"type": "path"},
            "ca_path": {"type": "path"},
            "fingerprint": {"type": "str"},
            "tls_minimum": {"type": "str", "choices": ["1.2", "1.3"], "default": "1.3"},
            "xml_signatures": {"type": "str", "choices": ["none", "sign", "require"], "default": "none"},
            "timeout_s": {"type": "float", "default": 10.0},
            "agent_directory": {"type": "path", "default": "/opt/derms"},
        },
        required_together=[["certificate_path", "private_key_path"]],
        supports_check_mode=True,
    )
    options = module.params
    host, port = place(module)
    dns, addresses = resolved(host, port)
    tcp = connected(host, port, options["timeout_s"]) if dns["status"] == "ok" else stage("tcp", "not_tried", NOT_TRIED)
    found: dict[str, Any] = {"registration": None, "tls_version": "", "cipher": "", "chain": [], "clock_off_s": None}
    no_agent = ""
    if tcp["status"] == "ok":
        asked = {name: value for name, value in options.items() if name != "agent_directory"}
        try:
            found = ask(module, "vtn_reached", **asked)
        except NoAgent as why:
            no_agent = str(why)
            found["stages"] = [stage(name, "unknown", no_agent) for name in WITH_AGENT]
    else:
        found["stages"] = [stage(name, "not_tried", NOT_TRIED) for name in WITH_AGENT]
    stages = [dns, tcp, *found.pop("stages")]
    failed = [one for one in stages if one["status"] == "failed"]
    result = {
        "changed": False,
        "reachable": stages[-1]["status"] == "ok",
        "stages": stages,
        "addresses": addresses,
        "notes": [f"VTN {host}:{port}: {in_words(one)}" for one in failed],
        "not_verified": [f"VTN {host}:{port}: {', '.join(WITH_AGENT)} unknown: {no_agent}"] if no_agent else [],
        **found,
    }
    if no_agent and not module.check_mode:
        module.fail_json(msg=result["not_verified"][0], **result)
    module.exit_json(**result)


def place(module: AnsibleModule) -> tuple[str, int]:
    """Return the host and port of the VTN; an address that is none is the module's failure."""
    url = module.params["vtn_url"]
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or HTTPS
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme != "https":
        module.fail_json(msg=f"vtn_url: found {url}, expected an address such as https://vtn.example")
    return str(host), port


def stage(name: str, status: str, reason: str = "", advice: str = "", latency_s: float | None = None) -> dict[str, Any]:
    """Return how a stage went."""
    latency_ms = None if latency_s is None else round(latency_s * 1000.0, 1)
    return {"name": name, "status": status, "reason": reason, "advice": advice, "latency_ms": latency_ms}


def resolved(host: str, port: int) -> tuple[dict[str, Any], list[str]]:
    """Return how the host's name was resolved, and to what."""
    began_s = time.monotonic()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        advice = "check the host in VTN_URL, and the gateway's resolver"
        return stage("dns", "failed", f"{host} has no address: {reason}", advice, time.monotonic() - began_s), []
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))
    return stage("dns", "ok", latency_s=time.monotonic() - began_s), addresses


def connected(host: str, port: int, timeout_s: float) -> dict[str, Any]:
    """Return how a connection went."""
    began_s = time.monotonic()
    try:
        socket.create_connection((host, port), timeout_s).close()
    except socket.timeout:
        reason, advice = f"no answer within {timeout_s:g} s", "check the route to the VTN, and the firewalls on it"
    except OSError as problem:
        reason, advice = problem.strerror or str(problem), "check the port in VTN_URL, and the firewalls on the way"
    else:
        return stage("tcp", "ok", latency_s=time.monotonic() - began_s)
    return stage("tcp", "failed", reason, advice, time.monotonic() - began_s)


def in_words(failed: dict[str, Any]) -> str:
    """Return a stage that failed as a person reads it."""
    return f"{failed['name']} failed: {failed['reason']}" + (f"; {failed['advice']}" if failed["advice"] else "")


if __name__ == "__main__":
    main()
