"""AWS credentials out of a Secret, in the three forms in which people have them. Pure.

- `accessKeyId`, `secretAccessKey` and, of temporary ones, `sessionToken`;
- `credentials`: an AWS shared credentials file (AWS CLI User Guide, "Configuration and credential file settings");
- `ec2-keys`: NixOps' `~/.ec2-keys`, lines of `ACCESS-KEY-ID SECRET-ACCESS-KEY ALIAS` with `#` comments (NixOps User's
  Guide, "Deploying to Amazon EC2").

Error texts name the Secret, the key in it and what is missing, never a value.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked

ACCESS_KEY_ID = "accessKeyId"
SECRET_ACCESS_KEY = "secretAccessKey"  # noqa: S105 - a key's name, not a password
SESSION_TOKEN = "sessionToken"  # noqa: S105
SHARED_FILE = "credentials"
EC2_KEYS = "ec2-keys"
DEFAULT_PROFILE = "default"


@dataclass(frozen=True)
class AwsIdentity:
    """Credentials as they go to boto3. `repr` shows the access key id only; it is no secret, but never put in status
    either."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


def aws_identity(secret: str, data: Mapping[str, bytes] | None, profile: str | None = None) -> AwsIdentity:
    """The identity in the Secret named `secret` with `data` (None: it does not exist). `profile` selects an entry of a
    file; without it `default` is taken, or the only entry.

    Raises Blocked: `SecretNotFound` - no such Secret. `AuthFailure` - it holds no credentials that can be used.
    """
    if data is None:
        raise Blocked(Reason.SECRET_NOT_FOUND, f"Secret {secret} with the AWS credentials does not exist; create it")
    texts = {key: _text(secret, key, data[key]) for key in data if key in _KEYS}
    forms = [form for form, keys in _FORMS.items() if keys & texts.keys()]
    if not forms:
        raise _unusable(secret, f"holds none of {ACCESS_KEY_ID}, {SHARED_FILE}, {EC2_KEYS}")
    if len(forms) > 1:
        raise _unusable(secret, f"holds credentials in several forms ({', '.join(forms)}); keep one of them")
    if forms == [SHARED_FILE]:
        return _from_shared_file(secret, texts[SHARED_FILE], profile)
    if forms == [EC2_KEYS]:
        return _from_ec2_keys(secret, texts[EC2_KEYS], profile)
    if profile is not None:
        raise _unusable(secret, f"holds plain keys, which have no profile {profile}; drop the profile")
    return _identity(
        f"Secret {secret}",
        texts,
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        session_token=SESSION_TOKEN,
    )


_FORMS = {
    ACCESS_KEY_ID: {ACCESS_KEY_ID, SECRET_ACCESS_KEY, SESSION_TOKEN},
    SHARED_FILE: {SHARED_FILE},
    EC2_KEYS: {EC2_KEYS},
}
_KEYS = set[str]().union(*_FORMS.values())


def _unusable(secret: str, what: str) -> Blocked:
    return Blocked(Reason.AUTH_FAILURE, f"Secret {secret} {what}")


def _text(secret: str, key: str, value: bytes) -> str:
    try:
        return value.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        # The decoding error holds the bytes.
        raise _unusable(secret, f"key {key}: is not UTF-8 text") from None


def _identity(
    where: str, values: Mapping[str, str], *, access_key_id: str, secret_access_key: str, session_token: str
) -> AwsIdentity:
    for name in (access_key_id, secret_access_key, session_token):
        value = values.get(name, "")
        if not value and name != session_token:
            raise Blocked(Reason.AUTH_FAILURE, f"{where} has no {name}")
        # A line break or a foreign character would end up in an HTTP header, and the header in an error's text.
        if not all("!" <= character <= "~" for character in value):
            raise Blocked(
                Reason.AUTH_FAILURE, f"{where} has a {name} with a blank, a line break or a foreign character"
            )
    return AwsIdentity(values[access_key_id], values[secret_access_key], values.get(session_token) or None)


def _from_shared_file(secret: str, text: str, profile: str | None) -> AwsIdentity:
    # RawConfigParser: a secret key may hold `%`. No default section: in AWS' files `default` is a profile like others.
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # The parser's own text repeats the line, which may be the secret.
        line = f"line {number}: " if (number := getattr(error, "lineno", None)) else ""
        raise _unusable(secret, f"key {SHARED_FILE}: {line}not a credentials file ({type(error).__name__})") from None
    name = _selected(secret, SHARED_FILE, parser.sections(), profile)
    return _identity(
        f"Secret {secret} key {SHARED_FILE} profile {name}",
        parser[name],
        access_key_id="aws_access_key_id",
        secret_access_key="aws_secret_access_key",  # noqa: S106 - the name of a setting
        session_token="aws_session_token",  # noqa: S106
    )


def _selected(secret: str, key: str, names: list[str], profile: str | None) -> str:
    if profile is not None:
        if profile not in names:
            raise _unusable(secret, f"key {key} has no profile {profile}; it has {_listed(names)}")
        return profile
    if DEFAULT_PROFILE in names:
        return DEFAULT_PROFILE
    if len(names) == 1:
        return names[0]
    raise _unusable(secret, f"key {key} has no profile {DEFAULT_PROFILE}; set profile to one of {_listed(names)}")


def _listed(names: list[str]) -> str:
    return ", ".join(sorted(names)) or "none"


@dataclass(frozen=True)
class _Line:
    """One entry of an ec2-keys file."""

    access_key_id: str
    secret_access_key: str
    alias: str | None


def _from_ec2_keys(secret: str, text: str, profile: str | None) -> AwsIdentity:
    lines = [_line(secret, number, line) for number, line in enumerate(text.splitlines(), start=1)]
    entry = _selected_line(secret, [line for line in lines if line is not None], profile)
    return _identity(
        f"Secret {secret} key {EC2_KEYS}",
        {ACCESS_KEY_ID: entry.access_key_id, SECRET_ACCESS_KEY: entry.secret_access_key},
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        session_token=SESSION_TOKEN,
    )


def _line(secret: str, number: int, line: str) -> _Line | None:
    words = line.partition("#")[0].split()
    if not words:
        return None
    if len(words) not in (2, 3):
        raise _unusable(
            secret, f"key {EC2_KEYS}: line {number} is not of the form ACCESS-KEY-ID SECRET-ACCESS-KEY ALIAS"
        )
    return _Line(words[0], words[1], words[2] if len(words) == 3 else None)


def _selected_line(secret: str, lines: list[_Line], profile: str | None) -> _Line:
    wanted = profile or DEFAULT_PROFILE
    for line in lines:
        if wanted in (line.alias, line.access_key_id):
            return line
    if profile is None and len(lines) == 1:
        return lines[0]
    aliases = _listed([line.alias for line in lines if line.alias])
    if profile is None:
        raise _unusable(secret, f"key {EC2_KEYS} has no alias {DEFAULT_PROFILE}; set profile to one of {aliases}")
    raise _unusable(secret, f"key {EC2_KEYS} has neither alias nor access key id {profile}; its aliases: {aliases}")
