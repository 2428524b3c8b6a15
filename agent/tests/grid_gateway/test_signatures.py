# SPDX-License-Identifier: Apache-2.0
"""XML signatures: openleadr's VTN takes ours, we take its; nothing touched, moved, replayed or forged is read."""

from __future__ import annotations

import base64
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from agent.tests.grid_gateway.conftest import Authority, LabVtn, endpoint_of
from agent.tests.grid_gateway.test_ven import Depot, Field, registered, within
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from openleadr import messaging
from signxml.exceptions import InvalidSignature

from derms_agent.grid_gateway import messages
from derms_agent.grid_gateway.incoming import Malformed, Response
from derms_agent.grid_gateway.messages import Unsendable
from derms_agent.grid_gateway.schema import NAMESPACES
from derms_agent.grid_gateway.signatures import MOST_OFF_S, Replays, Signatures, Untrusted, signatures_of
from derms_agent.grid_gateway.transport import fingerprint_of
from derms_agent.grid_gateway.ven import Ven

OADR, DS = NAMESPACES["oadr"], NAMESPACES["ds"]


def signed_by(authority: Authority, name: str = "vtn", kind: str = "oadrResponse", **payload: Any) -> bytes:
    """Return what openleadr's VTN sends by a certificate."""
    response = {"response_code": 200, "response_description": "OK", "request_id": "r1"}
    told = payload or {"response": response, "ven_id": "ven-1"}
    cert, key = ((authority.directory / f"{name}.{ending}").read_bytes() for ending in ("crt", "key"))
    text: str = messaging.create_message(kind, cert=cert, key=key, **told)
    return text.encode()


@pytest.fixture
def ours(authority: Authority) -> Signatures:
    return Signatures(endpoint_of(authority, 1), required=True)


def refusal(signatures: Signatures, body: bytes) -> str:
    with pytest.raises(Malformed) as caught:
        signatures.read(body)
    return str(caught.value)


def test_what_openleadr_signs_is_read(ours: Signatures, authority: Authority) -> None:
    assert ours.read(signed_by(authority)) == Response(200, "OK", "r1", "ven-1")


def test_openleadr_takes_every_signature_of_ours(ours: Signatures) -> None:
    for body in (messages.poll("ven-1"), messages.create_party_registration("r1", "A & B <ü>", signs=True)):
        tree = messaging.validate_xml_schema(ours.signed(body))
        messaging.validate_xml_signature(tree)
        assert etree.tostring(tree[1], method="c14n") == etree.tostring(etree.fromstring(body)[0], method="c14n")


def test_openleadr_refuses_what_was_changed_after_we_signed(ours: Signatures) -> None:
    body = ours.signed(messages.poll("ven-1")).replace(b"ven-1", b"ven-2")
    with pytest.raises(InvalidSignature):
        messaging.validate_xml_signature(messaging.validate_xml_schema(body))


def test_a_registration_says_that_messages_are_signed() -> None:
    assert b"<oadr:oadrXmlSignature>true<" in messages.create_party_registration("r1", "v", signs=True)
    assert b"<oadr:oadrXmlSignature>false<" in messages.create_party_registration("r1", "v")


def test_rsa_keys_sign_as_well(tmp_path: Path, authority: Authority) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rewrite(authority, tmp_path, key)
    signatures = Signatures(replace(endpoint_of(authority, 1), certificate=tmp_path / "c", key=tmp_path / "k"))
    body = signatures.signed(messages.poll("ven-1"))
    messaging.validate_xml_signature(messaging.validate_xml_schema(body))
    assert b"rsa-sha256" in body


def rewrite(authority: Authority, directory: Path, key: Any, **more: Any) -> None:
    """Write a certificate for a key of any kind as c, and the key as k."""
    found = more.pop("issuer", (authority.certificate, authority.key))
    mould = x509.load_pem_x509_certificate((authority.directory / "vtn.crt").read_bytes())
    host = more.pop("host", "localhost")
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "written")]))
        .issuer_name(found[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(mould.not_valid_before_utc)
        .not_valid_after(mould.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    )
    if more.pop("says_so", False):
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = built.sign(found[1], hashes.SHA256())
    pem = serialization.Encoding.PEM
    (directory / "c").write_bytes(made.public_bytes(pem))
    (directory / "k").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def test_a_key_that_cannot_sign_xml_is_refused_at_the_start(tmp_path: Path, authority: Authority) -> None:
    rewrite(authority, tmp_path, ed25519.Ed25519PrivateKey.generate())
    endpoint = replace(endpoint_of(authority, 1), certificate=tmp_path / "c", key=tmp_path / "k")
    with pytest.raises(ValueError, match="expected a key of RSA or ECDSA"):
        Signatures(endpoint).check()
    with pytest.raises(Unsendable, match="RSA or ECDSA"):
        Signatures(endpoint).signed(messages.poll("v"))
    with pytest.raises(ValueError, match="CERT_PATH"):
        Signatures(replace(endpoint, certificate=None)).check()
    with pytest.raises(ValueError, match="not the certificate's"):
        Signatures(replace(endpoint, key=authority.directory / "ven.key")).check()
    with pytest.raises(ValueError, match="no VTN_FINGERPRINT and no CA_PATH"):
        Signatures(endpoint_of(authority, 1, authorities=None)).check()


# What does not get through


def test_a_message_without_a_signature(ours: Signatures) -> None:
    plain = messages.response("r1", "ven-1")
    assert "found no signature" in refusal(ours, plain)
    assert replaced(ours, required=False).read(plain) == Response(200, "OK", "r1", "ven-1")


def replaced(signatures: Signatures, **more: Any) -> Signatures:
    told = {"endpoint": signatures.endpoint, "required": signatures.required, **more}
    return Signatures(**told)


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"ven-1", b"ven-2"),
        lambda body: body.replace(b">200<", b">463<"),
        lambda body: body.replace(b"<dsp:nonce>", b"<dsp:nonce>0"),
        lambda body: body.replace(b"timestamp>2", b"timestamp>3"),
        lambda body: body.replace(b"ecdsa-sha256", b"hmac-sha256"),
        lambda body: body.replace(b"ecdsa-sha256", b"ecdsa-sha1"),
        lambda body: body.replace(b"REC-xml-c14n-20010315", b"REC-xslt-19991116"),
        lambda body: body.replace(b"#oadrSignedObject", b""),
        lambda body: body.replace(b"#oadrSignedObject", b"http://elsewhere.example/"),
    ],
)  # fmt: skip
def test_a_message_that_was_touched(
    ours: Signatures, authority: Authority, change: Callable[[bytes], bytes], required: bool
) -> None:
    """Whether or not a signature is demanded: one that is there has to be right."""
    body = signed_by(authority)
    assert change(body) != body
    assert "signature" in refusal(replaced(ours, required=required), change(body))


def test_a_key_of_a_stranger(ours: Signatures, stranger: Authority, authority: Authority) -> None:
    assert "no authority of CA_PATH gave localhost" in refusal(ours, signed_by(stranger))
    # Nor does the VTN's certificate help a key that is not its own.
    body = signed_by(stranger)
    theirs, own = (
        base64.b64encode(ssl.PEM_cert_to_DER_cert((one.directory / "vtn.crt").read_text(encoding="ascii")))
        for one in (stranger, authority)
    )
    root = etree.fromstring(body)
    shown = root.find(f".//{{{DS}}}X509Certificate")
    assert base64.b64decode(shown.text) == base64.b64decode(theirs)
    shown.text = own.decode()
    assert "not good" in refusal(ours, etree.tostring(root))


def test_another_of_the_same_authority(ours: Signatures, authority: Authority) -> None:
    """A VEN of the same utility's has a certificate as well: it is for another name."""
    authority.issue("neighbour", host="neighbour.example")
    assert "no authority of CA_PATH gave localhost" in refusal(ours, signed_by(authority, "neighbour"))


@pytest.mark.parametrize("says_so", [True, False])
def test_whoever_has_a_certificate_of_the_authority_is_no_authority(
    ours: Signatures, authority: Authority, tmp_path: Path, says_so: bool
) -> None:
    rewrite(authority, tmp_path, ec.generate_private_key(ec.SECP256R1()), host="neighbour.example", says_so=says_so)
    neighbour = x509.load_pem_x509_certificate((tmp_path / "c").read_bytes())
    signing = serialization.load_pem_private_key((tmp_path / "k").read_bytes(), None)
    rewrite(authority, tmp_path, ec.generate_private_key(ec.SECP256R1()), issuer=(neighbour, signing))
    chain = (tmp_path / "c").read_bytes() + neighbour.public_bytes(serialization.Encoding.PEM)
    text = messaging.create_message(
        "oadrRequestReregistration", cert=chain, key=(tmp_path / "k").read_bytes(), ven_id="v"
    )
    assert text.count("X509Certificate>") == 4
    assert "no authority of CA_PATH gave localhost" in refusal(ours, text.encode())


@pytest.mark.parametrize("signs", [True, False])
def test_an_authority_may_sign_certificates(
    ours: Signatures, authority: Authority, tmp_path: Path, signs: bool
) -> None:
    usage = dict.fromkeys(
        ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
         "crl_sign", "encipher_only", "decipher_only"), False,
    )  # fmt: skip
    known = authority.certificate
    made = (
        x509.CertificateBuilder(
            known.subject, known.subject, authority.key.public_key(), 1, known.not_valid_before_utc,
            known.not_valid_after_utc,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=signs, **usage), critical=True)
        .sign(authority.key, hashes.SHA256())
    )  # fmt: skip
    (tmp_path / "ca").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    judging = replaced(ours, endpoint=replace(ours.endpoint, authorities=tmp_path / "ca"))
    if signs:
        assert isinstance(judging.read(signed_by(authority)), Response)
    else:
        assert "no authority of CA_PATH gave" in refusal(judging, signed_by(authority))


def test_a_certificate_that_is_over(ours: Signatures, authority: Authority) -> None:
    authority.issue("over", -30, -1)
    assert "no authority of CA_PATH gave" in refusal(ours, signed_by(authority, "over"))


def test_a_pinned_certificate_is_the_only_one(ours: Signatures, authority: Authority) -> None:
    def pinned(name: str, length: int) -> Signatures:
        der = ssl.PEM_cert_to_DER_cert((authority.directory / f"{name}.crt").read_text(encoding="ascii"))
        return replaced(ours, endpoint=replace(ours.endpoint, fingerprint=fingerprint_of(der)[-length:]))

    for length in (20, 64):
        assert isinstance(pinned("vtn", length).read(signed_by(authority)), Response)
        assert "VTN_FINGERPRINT" in refusal(pinned("ven", length), signed_by(authority))


def test_a_message_that_was_taken_before(ours: Signatures, authority: Authority) -> None:
    body = signed_by(authority)
    ours.read(body)
    assert "taken before" in refusal(ours, body)
    ours.read(signed_by(authority))


@pytest.mark.parametrize("off_s", [-3600.0, -MOST_OFF_S - 2, MOST_OFF_S + 2, 3600.0])
def test_a_message_of_another_time(ours: Signatures, authority: Authority, off_s: float) -> None:
    other = replaced(ours, wall=lambda: time.time() - off_s)
    # A certificate of another time is refused as such before that, and here it is good for a month.
    words = refusal(other, signed_by(authority))
    assert f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'before'} this clock's time" in words
    near = replaced(ours, wall=lambda: time.time() - off_s * (MOST_OFF_S - 5) / abs(off_s))
    assert isinstance(near.read(signed_by(authority)), Response)


def evil(root: Any) -> Any:
    """Return an oadrSignedObject as an attacker would like to have it taken, without an id."""
    made = etree.fromstring(etree.tostring(root.find(f"{{{OADR}}}oadrSignedObject")))
    del made.attrib[f"{{{OADR}}}Id"]
    made.find(".//{*}responseDescription").text = "evil"
    return made


def in_an_object(root: Any) -> None:
    genuine = root.find(f"{{{OADR}}}oadrSignedObject")
    root.replace(genuine, evil(root))
    etree.SubElement(root[0], f"{{{DS}}}Object").append(genuine)


def evil_in_an_object(root: Any) -> None:
    etree.SubElement(root[0], f"{{{DS}}}Object").append(evil(root))


def before(root: Any) -> None:
    root.insert(1, evil(root))


def behind(root: Any) -> None:
    root.append(evil(root))


def inside(root: Any) -> None:
    genuine = root.find(f"{{{OADR}}}oadrSignedObject")
    outer = evil(root)
    root.replace(genuine, outer)
    outer.append(genuine)


def with_the_same_id(root: Any) -> None:
    made = evil(root)
    made.set(f"{{{OADR}}}Id", "oadrSignedObject")
    root.insert(1, made)


def with_another_id_attribute(root: Any) -> None:
    made = evil(root)
    made.set("ID", "oadrSignedObject")
    root.insert(1, made)


def renamed(root: Any) -> None:
    """Leave the genuine one where the digest finds it, and have another in its place."""
    genuine = root.find(f"{{{OADR}}}oadrSignedObject")
    root.replace(genuine, evil(root))
    etree.SubElement(etree.SubElement(root, "a"), "b").append(genuine)


def second_signature(root: Any) -> None:
    root.insert(0, etree.fromstring(etree.tostring(root[0])))


def without_message_reference(root: Any) -> None:
    info = root[0].find(f"{{{DS}}}SignedInfo")
    info.remove(info.findall(f"{{{DS}}}Reference")[0])


def protect_outside(root: Any) -> None:
    """Another ReplayProtect than the one that was signed."""
    made = etree.fromstring(etree.tostring(root[0].find(f"{{{DS}}}Object")))
    made.set("Id", "other")
    made.find(".//{*}SignatureProperty").set("Id", "others")
    made.find(".//{*}nonce").text = "other"
    root[0].insert(3, made)


@pytest.mark.parametrize(
    "wrap",
    [
        in_an_object, evil_in_an_object, before, behind, inside, with_the_same_id, with_another_id_attribute, renamed,
        second_signature, without_message_reference,
    ],
)  # fmt: skip
def test_a_message_that_was_wrapped(ours: Signatures, authority: Authority, wrap: Callable[[Any], None]) -> None:
    root = etree.fromstring(signed_by(authority))
    wrap(root)
    assert "evil" not in refusal(ours, etree.tostring(root))


def test_the_nonce_is_that_which_was_signed(ours: Signatures, authority: Authority) -> None:
    """A message is not taken twice for a second ReplayProtect before the signed one."""
    body = signed_by(authority)
    ours.read(body)
    root = etree.fromstring(body)
    protect_outside(root)
    assert "taken before" in refusal(ours, etree.tostring(root))


def test_a_doctype_is_refused_before_anything(ours: Signatures, authority: Authority) -> None:
    assert "DOCTYPE" in refusal(ours, b"<!DOCTYPE a>" + signed_by(authority).partition(b"?>")[2].lstrip())


# The memory


@given(st.lists(st.tuples(st.floats(0, 200), st.sampled_from("abc")), max_size=80), st.integers(1, 8))
def test_none_is_taken_twice_and_the_memory_is_bounded(stamps: list[tuple[float, str]], most: int) -> None:
    replays, now_unix_s, taken = Replays(most), 0.0, set()
    for stamp_unix_s, nonce in stamps:
        now_unix_s = max(now_unix_s, stamp_unix_s)
        try:
            replays.take(stamp_unix_s, nonce, now_unix_s)
        except Untrusted:
            continue
        assert (stamp_unix_s, nonce) not in taken
        taken.add((stamp_unix_s, nonce))
        assert len(replays) <= most


def test_all_are_taken_that_come_in_their_order() -> None:
    replays = Replays(most=100)
    for number in range(1000):
        replays.take(1000 + number / 1000, "n", 1000 + number / 1000)
    assert len(replays) == 100


def test_clocks_that_are_put_back_lock_nobody_out() -> None:
    replays = Replays(most=2)
    for number in range(10):
        replays.take(10_000.0 + number, "n", 10_000.0 + number)
    replays.take(5_000.0, "n", 5_000.0)
    with pytest.raises(Untrusted, match="taken before"):
        replays.take(5_000.0, "n", 5_001.0)


# The whole way


@pytest.fixture
def signing(new_vtn: Callable[..., LabVtn], authority: Authority, tmp_path: Path) -> Field:
    """Return a field whose VTN signs, and demands signatures."""
    return Field(new_vtn(more={"signs": True}), Depot(), authority, tmp_path)


def said(ven: Ven, words: str) -> bool:
    return words in (ven.trouble or "")


@pytest.mark.anyio
async def test_a_vtn_that_demands_signatures_is_obeyed_through_replay_and_a_new_key(
    signing: Field, authority: Authority
) -> None:
    # One that does not sign gets nothing.
    async with signing.running() as ven:
        await within(10, lambda: signing.vtn.seen("registrations"))
        await within(10, lambda: ven.trouble)
    signing.vtn.do("reset")
    signing.renew()
    signing.ven.registration = None
    signing.ven.signatures = Signatures(signing.ven.transport.endpoint, required=True)
    async with signing.running() as ven:
        await within(10, lambda: registered(signing) and ven.trouble is None)
        event_id = signing.add([1])
        await within(10, lambda: signing.depot.high_w() == [60_000.0])
        await within(10, lambda: signing.opts().get(event_id) == "optIn")
        # An answer that was recorded is taken once, and one without a signature never.
        for mode, words in (
            (signed_by(authority).decode(), "taken before"),
            (messages.response("r1", "ven-0").decode(), "found no signature"),
            (signed_by(authority).decode().replace("ven-1", "ven-2"), "not good"),
        ):
            signing.vtn.do("mode", mode=mode.partition("?>")[2].strip())
            await within(10, partial(said, ven, words))
            signing.vtn.do("mode", mode="")
            await within(10, lambda: ven.trouble is None)
        # A certificate is replaced: openleadr's VTN makes another VEN of it, and takes what the new key signs.
        certificate, key = (authority.directory / f"ven.{ending}" for ending in ("crt", "key"))
        before = certificate.read_bytes(), key.read_bytes()
        try:
            authority.issue("ven")
            ven_id = signing.ven_id
            await within(20, lambda: signing.ven_id != ven_id)
            await within(10, lambda: ven.trouble is None)
            later = signing.add([2])
            await within(10, lambda: later in signing.opts())
        finally:
            certificate.write_bytes(before[0])
            key.write_bytes(before[1])


@pytest.mark.parametrize("value", ["none", "sign", "require"])
def test_the_service_signs_as_agent_conf_says(authority: Authority, value: Any) -> None:
    found = signatures_of(value, endpoint_of(authority, 1))
    assert (found is not None, found is not None and found.required) == (value != "none", value == "require")
