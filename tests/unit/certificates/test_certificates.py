# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from ansible_collections.derms.edge.plugins.plugin_utils.certificates import (
    Bundle,
    Request,
    authority_key_flaw,
    examine,
    examine_authority,
    examine_issued,
    has_usable_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from .issuing import NOW, Identity, identity

ROOT = identity("depot CA", authority=True)
INTERMEDIATE = identity("utility issuing CA", ROOT, authority=True)
LEAF = identity("ven", INTERMEDIATE)
STRANGER = identity("somebody else's CA", authority=True)
GOOD = Bundle("ven", LEAF.pem, LEAF.key_pem, ROOT.pem, INTERMEDIATE.pem)


def issued_at(begins: int, ends: int) -> Identity:
    return identity("ven", ROOT, begins=NOW + timedelta(days=begins), ends=NOW + timedelta(days=ends))


def bundle_of(leaf: Identity, authority: Identity = ROOT) -> Bundle:
    return Bundle("ven", leaf.pem, leaf.key_pem, authority.pem)


def test_a_good_bundle_is_ok() -> None:
    finding = examine(GOOD, NOW, 30)
    assert (finding.state, finding.problem, finding.sound) == ("ok", "", True)
    assert finding.not_after == LEAF.certificate.not_valid_after_utc


@pytest.mark.parametrize(
    ("bundle", "why"),
    [
        (replace(GOOD, certificate=LEAF.pem + INTERMEDIATE.pem, chain=b""), "intermediate after the leaf"),
        (replace(GOOD, authority=STRANGER.pem + ROOT.pem), "several authorities are trusted"),
        (replace(GOOD, authority=INTERMEDIATE.pem, chain=b""), "an intermediate is what is trusted"),
        (bundle_of(identity("self", authority=False)), "never"),
    ],
)
def test_chains(bundle: Bundle, why: str) -> None:
    assert examine(bundle, NOW, 30).sound == (why != "never")


@pytest.mark.parametrize(
    ("bundle", "state", "words"),
    [
        (replace(GOOD, certificate=None), "missing", "the certificate is missing"),
        (replace(GOOD, private_key=None), "missing", "the private key is missing"),
        (replace(GOOD, authority=None), "missing", "the CA is missing"),
        (replace(GOOD, chain=None), "missing", "the chain is missing"),
        (replace(GOOD, chain=b""), "untrusted", "CN=utility issuing CA"),
        (
            replace(GOOD, certificate=b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            "unreadable",
            "PEM",
        ),
        (replace(GOOD, private_key=b"garbage"), "unreadable", "not a private key"),
        (replace(GOOD, private_key=LEAF.protected_key_pem(b"x")), "unreadable", "protected by a passphrase"),
        (replace(GOOD, private_key=ROOT.key_pem), "mismatch", "not that of the certificate of CN=ven"),
        (replace(GOOD, authority=STRANGER.pem), "untrusted", "issued by CN=depot CA, which is neither"),
        (bundle_of(issued_at(-20, -1)), "expired", "expired on"),
        (bundle_of(issued_at(1, 20)), "not_yet_valid", "is valid from"),
        (bundle_of(issued_at(-1, 20)), "expiring", "expires on"),
        (bundle_of(identity("ven", LEAF), LEAF), "untrusted", "is no authority"),
    ],
)
def test_flaws_are_named(bundle: Bundle, state: str, words: str) -> None:
    finding = examine(bundle, NOW, 30)
    assert finding.state == state
    assert words in finding.problem
    assert finding.sound == (state == "expiring")


def test_an_expired_authority_is_named() -> None:
    old = identity("old CA", authority=True, begins=NOW - timedelta(days=9), ends=NOW - timedelta(days=1))
    finding = examine(bundle_of(identity("ven", old), old), NOW, 30)
    assert finding.state == "expired"
    assert "old CA" in finding.problem


def test_a_forged_signature_is_not_trusted() -> None:
    forged_authority = identity("depot CA", authority=True)
    assert examine(bundle_of(identity("ven", forged_authority)), NOW, 30).state == "untrusted"


WEB = Request("web", "derms-web", ("GW1", "192.0.2.7", "192.0.2.7"), "both")


def issued_bundle(leaf: Identity) -> Bundle:
    return Bundle("web", leaf.pem, leaf.key_pem, ROOT.pem)


@pytest.mark.parametrize(
    ("leaf", "state", "words"),
    [
        (identity("derms-web", ROOT, names=("gw1", "192.0.2.7")), "ok", ""),
        (
            identity("derms-wob", ROOT, names=("gw1", "192.0.2.7")),
            "different",
            "common name derms-wob instead of derms-web",
        ),
        (identity("derms-web", ROOT, names=("gw1",)), "different", "DNS:gw1 instead of DNS:gw1, IP:192.0.2.7"),
        (identity("derms-web", ROOT), "different", "alternative names none"),
        (
            identity("derms-web", ROOT, names=("gw1", "192.0.2.7"), usages=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
            "different",
            "usage clientAuth instead of clientAuth, serverAuth",
        ),
        (identity("derms-web", STRANGER, names=("gw1", "192.0.2.7")), "untrusted", "somebody else's CA"),
    ],
)
def test_an_issued_certificate_must_say_what_is_asked_for(leaf: Identity, state: str, words: str) -> None:
    finding = examine_issued(issued_bundle(leaf), WEB, NOW, 30)
    assert finding.state == state
    assert words in finding.problem


def test_authority_must_outlive_what_it_issues() -> None:
    year = identity("CA", authority=True, ends=NOW + timedelta(days=365))
    assert examine_authority(year.pem, NOW, 364).state == "ok"
    assert examine_authority(year.pem, NOW, 397).state == "expiring"
    assert examine_authority(None, NOW, 397).state == "missing"
    assert examine_authority(LEAF.pem, NOW, 397).state == "untrusted"


def test_a_renewed_authority_goes_on_being_trusted() -> None:
    leaf = identity("web", ROOT)
    renewed = identity("depot CA", authority=True, key=ROOT.key, ends=NOW + timedelta(days=3650))
    assert examine(bundle_of(leaf, renewed), NOW, 30).state == "ok"


@pytest.mark.parametrize(
    ("key", "passphrase", "words"),
    [
        (ROOT.key_pem, None, ""),
        (ROOT.protected_key_pem(b"open"), b"open", ""),
        (ROOT.protected_key_pem(b"open"), b"shut", "cannot be opened with the passphrase"),
        (ROOT.protected_key_pem(b"open"), None, "is protected by a passphrase"),
        (ROOT.key_pem, b"open", "is not protected, although"),
        (STRANGER.key_pem, None, "not that of the certificate"),
        (None, None, "is missing"),
    ],
)
def test_authority_key(key: bytes | None, passphrase: bytes | None, words: str) -> None:
    flaw = authority_key_flaw(ROOT.pem, key, passphrase)
    assert words in flaw
    assert bool(flaw) == bool(words)


def test_a_key_is_kept_unless_it_is_unfit() -> None:
    assert has_usable_key(GOOD)
    assert has_usable_key(replace(GOOD, certificate=None))
    assert not has_usable_key(replace(GOOD, private_key=None))
    assert not has_usable_key(replace(GOOD, private_key=STRANGER.key_pem))
