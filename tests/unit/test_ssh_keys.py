"""A private key as people store it: read alike by everybody, or refused with what it is instead."""

from __future__ import annotations

import base64
import subprocess
import textwrap
from contextlib import suppress
from pathlib import Path

import asyncssh
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa, x25519
from hypothesis import given
from hypothesis import strategies as st

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.ssh_keys import KeyKind, generate_ed25519, parse_private_key, public_key_for_ec2

WHERE = "key ssh-privatekey of Secret web-key"
PEM = serialization.Encoding.PEM
OPENSSH, PKCS8, TRADITIONAL = (
    serialization.PrivateFormat.OpenSSH,
    serialization.PrivateFormat.PKCS8,
    serialization.PrivateFormat.TraditionalOpenSSL,
)
PLAIN, LOCKED = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"x")
ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ECDSA = ec.derive_private_key(12345, ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)


def public_of(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def written(
    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    form: serialization.PrivateFormat,
    encryption: serialization.KeySerializationEncryption = PLAIN,
) -> bytes:
    return key.private_bytes(PEM, form, encryption)


KEY = written(ED25519, OPENSSH)


def block(label: str, body: bytes = b"MIIB") -> bytes:
    return b"-----BEGIN %b-----\n%b\n-----END %b-----\n" % (label.encode(), body, label.encode())


def string(value: bytes) -> bytes:
    return len(value).to_bytes(4, "big") + value


def openssh(kind: str, cipher: bytes = b"none") -> bytes:
    """The outer form of a key (OpenSSH, PROTOCOL.key), as far as it is looked at before the key itself."""
    public = string(string(kind.encode()) + string(b"x" * 32))
    header = b"openssh-key-v1\0" + string(cipher) + string(b"none") + string(b"") + b"\0\0\0\1"
    return block("OPENSSH PRIVATE KEY", base64.b64encode(header + public + string(b"y" * 64)))


def refusal(data: bytes) -> str:
    with pytest.raises(Blocked) as caught:
        parse_private_key(data, WHERE)
    assert caught.value.reason is Reason.SECRET_NOT_FOUND
    assert caught.value.message.startswith(WHERE + " ")
    return caught.value.message.removeprefix(WHERE + " ")


def rsa_of(bits: int) -> bytes:
    """A key of so many bits whose numbers fit each other, but whose factors are no primes: those would take minutes."""
    p, q, e = (1 << (bits // 2)) - 1, (1 << (bits - bits // 2)) - 3, 65537
    while True:
        try:
            d = pow(e, -1, (p - 1) * (q - 1))
            break
        except ValueError:
            p -= 2
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), rsa.RSAPublicNumbers(e, p * q))
    key = numbers.private_key(unsafe_skip_rsa_key_validation=True)
    return key.private_bytes(PEM, TRADITIONAL, PLAIN)


@pytest.mark.parametrize(
    ("data", "public", "kind", "bits"),
    [
        pytest.param(KEY, public_of(ED25519), KeyKind.ED25519, 256, id="Ed25519, OpenSSH"),
        pytest.param(written(ED25519, PKCS8), public_of(ED25519), KeyKind.ED25519, 256, id="Ed25519, PKCS#8"),
        pytest.param(written(RSA, OPENSSH), public_of(RSA), KeyKind.RSA, 2048, id="RSA, OpenSSH"),
        pytest.param(written(RSA, TRADITIONAL), public_of(RSA), KeyKind.RSA, 2048, id="RSA, PKCS#1"),
        pytest.param(written(RSA, PKCS8), public_of(RSA), KeyKind.RSA, 2048, id="RSA, PKCS#8"),
        pytest.param(written(ECDSA, OPENSSH), public_of(ECDSA), KeyKind.ECDSA, 256, id="ECDSA, OpenSSH"),
        pytest.param(written(ECDSA, TRADITIONAL), public_of(ECDSA), KeyKind.ECDSA, 256, id="ECDSA, SEC 1"),
        pytest.param(written(ECDSA, PKCS8), public_of(ECDSA), KeyKind.ECDSA, 256, id="ECDSA, PKCS#8"),
    ],
)  # fmt: skip
def test_ec2_and_ssh_read_the_very_same_key(data: bytes, public: str, kind: KeyKind, bits: int) -> None:
    key = parse_private_key(data, WHERE)
    assert (key.public, key.kind, key.bits) == (public, kind, bits)
    offered = asyncssh.import_private_key(key.text, unsafe_skip_rsa_key_validation=True)
    assert offered.export_public_key("openssh").decode().split()[:2] == public.split()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + KEY, id="a byte-order mark"),
        pytest.param(KEY.decode().encode("utf-16"), id="UTF-16, as PowerShell writes it"),
        pytest.param(KEY.replace(b"\n", b"\r\n"), id="Windows line ends"),
        pytest.param(KEY.replace(b"\n", b"\r"), id="line ends of an old Macintosh"),
        pytest.param(KEY.rstrip(), id="no last newline"),
        pytest.param(b"\n \n" + KEY + b"\n\n", id="empty lines around it"),
        pytest.param(textwrap.indent(KEY.decode(), "    ").encode(), id="blanks before each line"),
        pytest.param(KEY.replace(b"\n", b" "), id="all on one line"),
        pytest.param(b"# the web servers\n" + KEY + b"comment\n", id="comments around it"),
        pytest.param(public_of(ED25519).encode() + b"\n" + KEY, id="its public half before it"),
    ],
)
def test_what_editors_do_to_a_file_makes_no_other_key(data: bytes) -> None:
    key = parse_private_key(data, WHERE)
    assert key == parse_private_key(KEY, WHERE)
    assert asyncssh.import_private_key(key.text).export_public_key("openssh").decode().strip() == key.public


def test_parameters_before_a_key_are_left_away() -> None:
    """As `openssl ecparam -genkey` writes it."""
    parameters = block("EC PARAMETERS")
    assert parse_private_key(parameters + written(ECDSA, TRADITIONAL), WHERE).kind is KeyKind.ECDSA


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"", "is empty", id="nothing"),
        pytest.param(b" \n", "is empty", id="blanks"),
        pytest.param(b"hunter2\n", "holds no private key", id="a password"),
        pytest.param(b"PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n", "PuTTY's form", id="PuTTY"),
        pytest.param(b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nx\n", "ssh.com's form", id="ssh.com"),
        pytest.param(b"SSH PRIVATE KEY FILE FORMAT 1.1\n\0\0", "protocol 1", id="SSH 1"),
        pytest.param(public_of(ED25519).encode(), "holds a public key", id="a public key"),
        pytest.param(block("PUBLIC KEY"), "holds a public key", id="public, PEM"),
        pytest.param(b"ssh-ed25519-cert-v01@openssh.com AAAA web\n", "holds a certificate", id="OpenSSH certificate"),
        pytest.param(block("CERTIFICATE"), "holds a certificate", id="X.509 certificate"),
        pytest.param(KEY[:-40], "was cut", id="cut"),
        pytest.param(KEY + KEY, "holds 2 private keys", id="two keys"),
        pytest.param(base64.b64encode(KEY), "base64 twice", id="encoded twice"),
        pytest.param(KEY.replace(b"\n", b"\\n"), "written as \\n", id="written line ends"),
        pytest.param(b"\x30\x82\xff\x00\x80", "binary data", id="DER"),
        pytest.param(openssh("ssh-ed25519", cipher=b"aes256-ctr"), "passphrase", id="locked, OpenSSH"),
        pytest.param(written(RSA, PKCS8, LOCKED), "passphrase", id="locked, PKCS#8"),
        pytest.param(written(RSA, TRADITIONAL, LOCKED), "passphrase", id="locked, PKCS#1"),
        pytest.param(block("EC PARAMETERS"), "parameters of a key alone", id="parameters alone"),
        pytest.param(block("DSA PRIVATE KEY"), "DSA key", id="DSA"),
        pytest.param(block("RSA PRIVATE KEY"), "damaged", id="damaged"),
        pytest.param(block("PRIVATE KEY"), "damaged", id="damaged, PKCS#8"),
        pytest.param(block("OPENSSH PRIVATE KEY"), "damaged", id="damaged, OpenSSH"),
        pytest.param(block("PGP PRIVATE KEY"), "unknown form", id="PGP"),
        pytest.param(b"x" * (16 << 10) + b"y", "larger than a private key", id="too large"),
    ],
)  # fmt: skip
def test_what_is_no_usable_key_is_named(data: bytes, words: str) -> None:
    assert words in refusal(data)


def test_a_kind_that_ssh_does_not_use_is_refused_before_its_numbers_are_looked_at() -> None:
    """To load a Diffie-Hellman key (PKCS #3) tests its prime, which takes long for a large one."""
    diffie_hellman = bytes.fromhex("3014020100300b06092a864886f70d01030104020000")
    assert "SSH does not use" in refusal(block("PRIVATE KEY", base64.b64encode(diffie_hellman)))
    x25519_key = x25519.X25519PrivateKey.from_private_bytes(bytes(32)).private_bytes(PEM, PKCS8, PLAIN)
    assert "SSH does not use" in refusal(x25519_key)


def test_a_dsa_key_in_another_form_is_refused() -> None:
    assert "SSH does not use" in refusal(dsa.generate_private_key(2048).private_bytes(PEM, PKCS8, PLAIN))


def test_a_security_keys_handle_is_refused() -> None:
    assert "security key" in refusal(openssh("sk-ssh-ed25519@openssh.com"))


def test_a_public_half_that_is_another_keys_is_refused() -> None:
    """OpenSSH's form holds it beside the private half; a program that shows the one would sign with the other."""
    blob = base64.b64decode("".join(KEY.decode().split("\n")[1:-2]))
    ours = base64.b64decode(public_of(ED25519).split()[1])[-32:]
    other = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key().public_bytes_raw()
    assert "damaged" in refusal(block("OPENSSH PRIVATE KEY", base64.b64encode(blob.replace(ours, other))))


@pytest.mark.parametrize("bits", [8200, 16384])
def test_an_rsa_key_that_would_hold_up_everybody_is_refused(bits: int) -> None:
    """Its factors are no primes: had they been tested, for half an hour, it would be damaged."""
    assert f"RSA key of {bits} bits" in refusal(rsa_of(bits))


def test_a_large_rsa_key_is_read_without_testing_its_primes() -> None:
    assert parse_private_key(rsa_of(8192), WHERE).bits == 8192


def test_rsa_numbers_that_do_not_fit_each_other_are_refused() -> None:
    numbers = RSA.private_numbers()
    other = rsa.generate_private_key(65537, 2048).private_numbers()
    broken = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, other.d, numbers.dmp1, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert "damaged" in refusal(broken.private_bytes(PEM, TRADITIONAL, PLAIN))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(written(ECDSA, OPENSSH), "holds an ECDSA key", id="ECDSA"),
        pytest.param(rsa_of(4104), "holds an RSA key of 4104 bits", id="RSA over 4096 bits"),
        pytest.param(rsa_of(8192), "holds an RSA key of 8192 bits", id="RSA of 8192 bits"),
    ],
)
def test_what_ssh_takes_and_ec2_does_not_is_refused_for_ec2_alone(data: bytes, words: str) -> None:
    key = parse_private_key(data, WHERE)
    with pytest.raises(Blocked, match=words):
        public_key_for_ec2(key, WHERE)


@pytest.mark.parametrize(
    "data", [KEY, rsa_of(1024), rsa_of(3072), rsa_of(4096)], ids=["Ed25519", "1024", "3072", "4096"]
)
def test_what_ec2_takes_is_given_to_it(data: bytes) -> None:
    key = parse_private_key(data, WHERE)
    assert public_key_for_ec2(key, WHERE) == key.public


def test_a_new_key_is_one_that_everybody_reads(tmp_path: Path) -> None:
    key = generate_ed25519()
    assert parse_private_key(key.text.encode(), WHERE) == key
    file = tmp_path / "key"
    file.write_text(key.text)
    file.chmod(0o600)
    done = subprocess.run(["ssh-keygen", "-y", "-f", str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == key.public.split()


def test_no_key_is_shown_by_accident() -> None:
    assert "PRIVATE" not in repr(generate_ed25519())


@given(st.binary(max_size=300), st.integers(0, len(KEY)))
def test_any_bytes_are_read_or_refused(junk: bytes, place: int) -> None:
    for data in (junk, KEY[:place] + junk + KEY[place:]):
        with suppress(Blocked):
            assert parse_private_key(data, WHERE).public == public_of(ED25519)
