# Copyright: (c) 2026, DERMS Edge developers
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: certificates
short_description: Inspects certificates on the control node and puts the sound ones on a gateway
version_added: 0.1.0
author: DERMS Edge developers (@derms-edge)
description:
  - With O(state=inspected), reads every certificate, private key and authority on the control node in one go, and
    says what the depot's own authority has to issue. Nothing is changed, and no connection is needed.
  - A provided certificate that is missing, expired, not that of its private key, or issued by nobody that is trusted
    fails the task.
  - With O(state=installed), compares the gateway's files with the sound certificates and replaces what differs, in one
    step. Private keys are in no log, no diff and no result.
requirements:
  - cryptography >= 42 (on the control node)
options:
  state:
    description: Whether to look only, or to put the files on the gateway.
    type: str
    choices: [inspected, installed]
    required: true
  source:
    description: Whether the depot's own authority issues O(issued), or O(provided) is all there is.
    type: str
    choices: [ownca, provided]
    required: true
  provided:
    description: Certificates that the utility's operator provided. One takes the place of the issued one of its name.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the certificate is for.
        type: str
        required: true
      certificate:
        description:
          - The certificate, perhaps followed by those between it and the CA.
          - A file, looked for from the inventory's directory and perhaps encrypted by ansible-vault; or the PEM text.
        type: str
        required: true
      private_key:
        description: Its private key without a passphrase, a file or PEM text likewise.
        type: str
        required: true
      chain:
        description: Certificates between the certificate and the CA, a file or PEM text likewise.
        type: str
      ca:
        description: The authorities to trust, a file or PEM text likewise.
        type: str
        required: true
  issued:
    description: Certificates that the depot's own authority issues.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What the certificate is for.
        type: str
        required: true
      common_name:
        description: The subject's common name.
        type: str
        required: true
      subject_alt_names:
        description: Host names and addresses.
        type: list
        elements: str
        default: []
      usage:
        description: Which side of a connection shows it.
        type: str
        choices: [client, server, both]
        default: client
      install:
        description: Whether it belongs on the gateway.
        type: bool
        default: true
  pki_directory:
    description: Where the control node keeps the depot's authority, and below it what was issued for each host.
    type: str
    required: true
  directory:
    description: Where the gateway keeps the files.
    type: str
    default: /etc/derms/certs
  passphrase:
    description: The passphrase of the authority's private key, if it has one.
    type: str
  warn_days:
    description: How many days before its end a provided certificate is reported.
    type: int
    default: 30
  renew_days:
    description: How many days before its end an issued certificate counts as to be issued anew.
    type: int
    default: 30
  valid_days:
    description: How long an issued certificate is valid, which the authority must outlive.
    type: int
    default: 397
attributes:
  action:
    description: Inspects on the control node.
    support: full
  check_mode:
    description: Predicts what would be issued and replaced.
    support: full
  diff_mode:
    description: Names the files that differ, and never shows what they hold.
    support: full
"""

EXAMPLES = r"""
- name: Inspect what the utility's operator provided
  derms.edge.certificates:
    state: inspected
    source: provided
    provided:
      - name: grid-gateway
        certificate: pki/utility/ven.crt
        private_key: "{{ vault_ven_private_key }}"
        ca: pki/utility/ca.crt
    pki_directory: "{{ inventory_dir }}/pki/{{ derms_depot }}"
"""

RETURN = r"""
bundles:
  description: What was found out about each certificate.
  returned: with O(state=inspected)
  type: list
  elements: dict
  contains:
    name:
      description: What it is for.
      type: str
    state:
      description:
        - C(ok), C(expiring), C(missing), C(unreadable), C(mismatch), C(expired), C(not_yet_valid), C(untrusted), or
          C(different) where it does not say what is asked for.
      type: str
    not_after:
      description: Its end; empty where it could not be read.
      type: str
    problem:
      description: What is wrong with it, in words.
      type: str
make_authority:
  description: Whether the depot's authority has to be made or renewed, on behalf of this host.
  returned: with O(state=inspected)
  type: bool
to_issue:
  description: What the depot's authority has to issue.
  returned: with O(state=inspected)
  type: list
  elements: dict
  contains:
    name:
      description: What it is for.
      type: str
    common_name:
      description: The subject's common name.
      type: str
    subject_alt_names:
      description: Its alternative names with their kinds.
      type: list
      elements: str
    extended_key_usage:
      description: What it may be used for.
      type: list
      elements: str
    new_key:
      description: Whether a private key has to be made first.
      type: bool
    reason:
      description: Why it has to be issued.
      type: str
drift:
  description: In check mode what would be issued, and with O(state=installed) each file that differs.
  returned: always
  type: list
  elements: dict
notes:
  description: Provided certificates that end soon.
  returned: with O(state=inspected)
  type: list
  elements: str
"""
