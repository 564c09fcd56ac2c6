"""Private SSH keys as people store them in Secrets: one reader for all uses, so that EC2, SSH and the command line mean
the very same key. Pure, but for making a key.

A tenant chooses these bytes, so nothing costly is ever done with them: 16 KiB at most, only kinds of key whose loading
is cheap, and of RSA the numbers are compared with each other instead of tested for primality (4 s for 8,192 bits, half
an hour for 16,384). Anything within these limits is read in less than a millisecond; no thread is needed for it.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import math
import re
import textwrap
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked

SIZE_LIMIT = 16 << 10  # bytes; RSA of 8,192 bits has 6.5 kB in OpenSSH's form
RSA_BITS_LEAST = 1024  # sshd refuses shorter ones (sshd_config(5), RequiredRSASize)
RSA_BITS_MOST = 8192  # one signature takes 34 ms, on the loop; each doubling makes that seven times as much
EC2_RSA_BITS_MOST = 4096  # EC2 User Guide, "Create a key pair": RSA of 1024, 2048 and 4096 bits, and Ed25519
REMEMBERED = 4096  # keys

_LINE = 64  # characters of base64 (RFC 7468, 2)
_BEGIN = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----")
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_OPENSSH = "OPENSSH PRIVATE KEY"
_LABELS = {_OPENSSH, "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"}
_OPENSSH_MAGIC = b"openssh-key-v1\0"  # PROTOCOL.key of OpenSSH
_OPENSSH_TYPES = {
    b"ssh-ed25519",
    b"ssh-rsa",
    b"ecdsa-sha2-nistp256",
    b"ecdsa-sha2-nistp384",
    b"ecdsa-sha2-nistp521",
}
# Object identifiers in DER of the kinds that PKCS#8 may hold (RFC 8017, RFC 5480, RFC 8410). To load a Diffie-Hellman
# key, which it may hold as well, would test its prime.
_PKCS8_KINDS = (bytes.fromhex("2a864886f70d010101"), bytes.fromhex("2a8648ce3d0201"), bytes.fromhex("2b6570"))

_LOCKED = "holds a private key with a passphrase, which nobody is there to type; remove it with `ssh-keygen -p`"
_DSA = "holds a DSA key, which SSH servers no longer take; use Ed25519"
_DAMAGED = "holds a private key that is damaged or of an unknown form; store it anew"
_ESCAPED = "has its line ends written as \\n; store the key's file as it is"


class KeyKind(StrEnum):
    """What is told apart because not everybody takes it."""

    ED25519 = "Ed25519"
    RSA = "RSA"
    ECDSA = "ECDSA"


@dataclass(frozen=True)
class PrivateKey:
    """A key that can be used. Equal input, whatever its line ends, gives an equal value."""

    text: str = field(repr=False)  # one PEM or OpenSSH block, LF line ends, the last one included
    public: str  # `<type> <base64>`
    kind: KeyKind
    bits: int


def generate_ed25519() -> PrivateKey:
    """A new key."""
    encoded = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return parse_private_key(encoded, "a generated key")


def parse_private_key(data: bytes, where: str) -> PrivateKey:
    """The key in a Secret's bytes. `where` says in messages which Secret, and which key of it.

    Taken as they are: OpenSSH, PKCS#1, SEC 1 and PKCS#8 blocks, with a byte-order mark, any line ends, blanks before
    the lines, or comments around the block. Results are remembered by the hash of `data` (and hold the key): a pass
    does not pay for them again. Raises Blocked (`SecretNotFound`) with what is there instead and what to do about it;
    quotes nothing of it.
    """
    found = _remembered(data)
    if isinstance(found, str):
        raise Blocked(Reason.SECRET_NOT_FOUND, f"{where} {found}")
    return found


def public_key_for_ec2(key: PrivateKey, where: str) -> str:
    """`<type> <base64>` for EC2's ImportKeyPair. Raises Blocked (`SecretNotFound`) if EC2 takes no such key."""
    takes = f"EC2 takes Ed25519, and RSA of at most {EC2_RSA_BITS_MOST} bits; use one of these"
    if key.kind is KeyKind.ECDSA:
        raise Blocked(Reason.SECRET_NOT_FOUND, f"{where} holds an ECDSA key. {takes}")
    if key.kind is KeyKind.RSA and key.bits > EC2_RSA_BITS_MOST:
        raise Blocked(Reason.SECRET_NOT_FOUND, f"{where} holds an RSA key of {key.bits} bits. {takes}")
    return key.public


_memory: OrderedDict[bytes, PrivateKey | str] = OrderedDict()


def _remembered(data: bytes) -> PrivateKey | str:
    if len(data) > SIZE_LIMIT:
        return f"is larger than a private key ({SIZE_LIMIT >> 10} KiB); put the key alone there"
    digest = hashlib.sha256(data).digest()
    found = _memory.get(digest)
    if found is None:
        try:
            found = _read(_text(data))
        except _UnusableError as error:
            found = str(error)
        _memory[digest] = found
        if len(_memory) > REMEMBERED:
            _memory.popitem(last=False)
    else:
        _memory.move_to_end(digest)
    return found


class _UnusableError(Exception):
    """What is there instead of a key that can be used, and what to do: words after the name of the Secret."""


def _text(data: bytes) -> str:
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise _UnusableError("holds binary data; a private key in OpenSSH's or PEM form is text") from None


def _read(text: str) -> PrivateKey:
    blocks = _private_blocks(text)
    if not blocks:
        raise _UnusableError(_what_it_is(text))
    if len(blocks) > 1:
        raise _UnusableError(f"holds {len(blocks)} private keys; leave one of them")
    label, body = blocks[0]
    if label == "ENCRYPTED PRIVATE KEY" or "Proc-Type: 4,ENCRYPTED" in body:
        raise _UnusableError(_LOCKED)
    if label == "DSA PRIVATE KEY":
        raise _UnusableError(_DSA)
    if label not in _LABELS:
        raise _UnusableError(_DAMAGED)
    if "\\n" in body:
        raise _UnusableError(_ESCAPED)
    der = _decoded("".join(body.split()))
    _refuse_costly_kinds(label, der)
    lines = textwrap.wrap(base64.b64encode(der).decode(), _LINE)
    normalised = "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
    return _loaded(label, der, normalised)


def _private_blocks(text: str) -> list[tuple[str, str]]:
    """Label and body of each whole block. A regular expression would be slow with many beginnings and no end."""
    blocks = []
    for piece in text.split("-----BEGIN ")[1:]:
        label, _, rest = piece.partition("-----")
        body, end, _ = rest.partition(f"-----END {label}-----")
        if end and label.endswith("PRIVATE KEY"):
            blocks.append((label, body))
    return blocks


def _what_it_is(text: str) -> str:
    """Words for a text without a private key's block."""
    stripped = text.strip()
    if not stripped:
        return "is empty; put a private key there"
    if stripped.startswith("PuTTY-User-Key-File"):
        return "holds a key in PuTTY's form (.ppk); convert it with `puttygen KEY.ppk -O private-openssh -o KEY`"
    if stripped.startswith("---- BEGIN SSH2"):
        return "holds a key in ssh.com's form; convert it with `ssh-keygen -i`"
    if stripped.startswith("SSH PRIVATE KEY FILE FORMAT 1.1"):
        return "holds a key of SSH protocol 1; use Ed25519"
    if "-cert-v01@openssh.com" in stripped or "-----BEGIN CERTIFICATE" in stripped:
        return "holds a certificate; put the private key there"
    if re.match(r"(ssh-|ecdsa-|sk-)", stripped) or "PUBLIC KEY-----" in stripped:
        return "holds a public key; put the private key there (the file without .pub)"
    if _BEGIN.search(stripped):
        return "holds a private key that was cut: its last line (-----END …) is missing; store it anew"
    if "-----BEGIN EC PARAMETERS" in stripped:
        return "holds the parameters of a key alone; put the private key there"
    if _is_encoded_twice(stripped):
        return "was encoded as base64 twice; encode it once, or write it under stringData"
    return "holds no private key; put one in OpenSSH's or PEM form there"


def _is_encoded_twice(text: str) -> bool:
    joined = "".join(text.split())
    try:
        return _BASE64.fullmatch(joined) is not None and b"PRIVATE KEY-----" in base64.b64decode(joined, validate=True)
    except binascii.Error:
        return False


def _decoded(joined: str) -> bytes:
    try:
        return base64.b64decode(joined, validate=True)
    except (binascii.Error, ValueError):
        raise _UnusableError(_DAMAGED) from None


def _refuse_costly_kinds(label: str, der: bytes) -> None:
    if label == _OPENSSH:
        cipher, kind, _ = _openssh_header(der)
        if cipher != b"none":
            raise _UnusableError(_LOCKED)
        if kind == b"ssh-dss":
            raise _UnusableError(_DSA)
        if kind.startswith(b"sk-"):
            raise _UnusableError("holds the handle of a security key, which works with its device alone; use Ed25519")
        if kind not in _OPENSSH_TYPES:
            raise _UnusableError(_DAMAGED)
    if label == "PRIVATE KEY" and _pkcs8_kind(der) not in _PKCS8_KINDS:
        raise _UnusableError("holds a kind of key that SSH does not use; use Ed25519")


def _openssh_header(blob: bytes) -> tuple[bytes, bytes, bytes]:
    """Cipher, type and public blob out of OpenSSH's own form: magic, cipher, kdf, kdf options, number, public, …"""
    if not blob.startswith(_OPENSSH_MAGIC):
        raise _UnusableError(_DAMAGED)
    cipher, rest = _string(blob.removeprefix(_OPENSSH_MAGIC))
    _, rest = _string(rest)
    _, rest = _string(rest)
    if rest[:4] != b"\0\0\0\1":
        raise _UnusableError(_DAMAGED)
    public, _ = _string(rest[4:])
    kind, _ = _string(public)
    return cipher, kind, public


def _string(blob: bytes) -> tuple[bytes, bytes]:
    """A string of RFC 4251 (length in four bytes), and what follows it."""
    end = 4 + int.from_bytes(blob[:4], "big")
    if len(blob) < max(end, 4):
        raise _UnusableError(_DAMAGED)
    return blob[4:end], blob[end:]


def _pkcs8_kind(der: bytes) -> bytes:
    """The object identifier of a PKCS#8 key: SEQUENCE { INTEGER version, SEQUENCE { OBJECT IDENTIFIER, … }, … }."""
    tag, content = _der_value(der)
    version, after_version = _der_value(content)[0], content[2 + content[1] :] if len(content) > 1 else b""
    inner, algorithm = _der_value(after_version)
    identifier, kind = _der_value(algorithm)
    if (tag, version, inner, identifier) != (0x30, 0x02, 0x30, 0x06):
        raise _UnusableError(_DAMAGED)
    return kind


def _der_value(der: bytes) -> tuple[int, bytes]:
    """Tag and content of the first value."""
    if len(der) < 2:
        raise _UnusableError(_DAMAGED)
    size, start = der[1], 2
    if size >= 0x80:
        start = 2 + (size & 0x7F)
        size = int.from_bytes(der[2:start], "big")
    return der[0], der[start : start + size]


def _loaded(label: str, der: bytes, normalised: str) -> PrivateKey:
    load = serialization.load_ssh_private_key if label == _OPENSSH else serialization.load_pem_private_key
    try:
        key = load(normalised.encode(), password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without `from`: the library's text may quote what it could not read.
        raise _UnusableError(_DAMAGED) from None
    match key:
        case Ed25519PrivateKey():
            kind, bits = KeyKind.ED25519, 256
        case RSAPrivateKey():
            kind, bits = KeyKind.RSA, key.key_size
            _check_rsa(key)
        case EllipticCurvePrivateKey():
            kind, bits = KeyKind.ECDSA, key.curve.key_size
        case _:
            raise _UnusableError(_DAMAGED)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    if label == _OPENSSH and base64.b64decode(public.split()[1]) != _openssh_header(der)[2]:
        # OpenSSH's form holds the public half beside the private one: who reads the one must get the other.
        raise _UnusableError(_DAMAGED)
    return PrivateKey(normalised, public, kind, bits)


def _check_rsa(key: RSAPrivateKey) -> None:
    if not RSA_BITS_LEAST <= key.key_size <= RSA_BITS_MOST:
        limits = f"{RSA_BITS_LEAST} to {RSA_BITS_MOST} bits can be used; use Ed25519"
        raise _UnusableError(f"holds an RSA key of {key.key_size} bits. {limits}")
    numbers = key.private_numbers()
    p, q, d, e = numbers.p, numbers.q, numbers.d, numbers.public_numbers.e
    is_whole = (
        p > 1
        and q > 1
        and p % 2 == q % 2 == 1
        and p * q == numbers.public_numbers.n
        and e * d % math.lcm(p - 1, q - 1) == 1
        and (numbers.dmp1, numbers.dmq1, numbers.iqmp * q % p) == (d % (p - 1), d % (q - 1), 1)
    )
    if not is_whole:
        raise _UnusableError(_DAMAGED)
