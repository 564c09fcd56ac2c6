"""AWS credentials out of a Secret, in the three forms in which people have them. Pure.

- `accessKeyId`, `secretAccessKey` and, of temporary ones, `sessionToken`;
- `credentials`: an AWS shared credentials file (AWS CLI User Guide, "Configuration and credential file settings"). What
  the AWS CLI would have to ask somebody else for (roles, SSO, programs) is refused by name; `[profile x]`, as in
  `~/.aws/config`, is `x`;
- `ec2-keys`: NixOps' `~/.ec2-keys`, lines of `ACCESS-KEY-ID SECRET-ACCESS-KEY ALIAS` with `#` comments (NixOps User's
  Guide, "Deploying to Amazon EC2"). As in NixOps, other lines do not matter.

Error texts name the Secret, the key in it and what is missing, never a value.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nixops_operator.api.reasons import Reason
from nixops_operator.data_keys import listed_keys
from nixops_operator.errors import Blocked

ACCESS_KEY_ID = "accessKeyId"
SECRET_ACCESS_KEY = "secretAccessKey"  # noqa: S105 - a key's name, not a password
SESSION_TOKEN = "sessionToken"  # noqa: S105
SHARED_FILE = "credentials"
EC2_KEYS = "ec2-keys"
DEFAULT_PROFILE = "default"

_ID_SETTING = "aws_access_key_id"
_KEY_SETTING = "aws_secret_access_key"
_TOKEN_SETTING = "aws_session_token"  # noqa: S105
_GO_BEFORE_KEYS = (
    "role_arn",
    "web_identity_token_file",
    "sso_session",
    "sso_start_url",
    "sso_account_id",
    "sso_role_name",
)
"""Settings for which AWS' tools leave keys of the same profile aside (AWS CLI User Guide, "Configuration settings and
precedence"): to use the keys would be to act as somebody else."""
_INSTEAD_OF_KEYS = ("source_profile", "credential_source", "credential_process", "login_session", "mfa_serial")
_PROFILE_PREFIX = "profile "
_NO_PROFILES = ("sso-session ", "services ")
"""How sections of `~/.aws/config` begin that are no profiles."""


@dataclass(frozen=True)
class AssumedRole:
    """A role that an identity acts as."""

    arn: str
    external_id: str | None = None


@dataclass(frozen=True)
class AwsIdentity:
    """Credentials as they go to boto3. `repr` shows the access key id only; it is no secret, but never put in status
    either."""

    access_key_id: str  # empty: the operator's own identity, wherever it runs
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    role: AssumedRole | None = None

    @property
    def is_own(self) -> bool:
        """Whether it is the operator's: of its service account (IRSA, Pod Identity), or of its node."""
        return not self.access_key_id


OWN_IDENTITY = AwsIdentity("", "")


@dataclass(frozen=True)
class Lent:
    """To whom the administrator lends the operator's own identity."""

    namespace: str
    roles: tuple[str, ...] = ()
    """ARNs that it may be used to act as, and nothing else. Empty: the identity itself, and no role."""


def own_identity(lent: Iterable[Lent], namespace: str, role: AssumedRole | None) -> AwsIdentity:
    """The operator's own identity for an object of that namespace.

    Raises Blocked (`CredentialsForbidden`): a tenant who could name any role that the operator may take on would act
    with rights that were given to the operator for somebody else (IAM User Guide, "The confused deputy problem").
    """
    loans = [one for one in lent if one.namespace == namespace]
    if not loans:
        message = (
            "spec.aws.credentials names no Secret, and the operator lends its own AWS identity to nobody in namespace "
            f"{namespace} (the administrator's setting aws.lend); name one made by: "
            "kubectl create secret generic aws --from-file=credentials=$HOME/.aws/credentials"
        )
        raise Blocked(Reason.CREDENTIALS_FORBIDDEN, message)
    roles = sorted(arn for one in loans for arn in one.roles)
    if role is not None and role.arn not in roles:
        message = (
            f"the operator's own AWS identity may not act as {role.arn} for namespace {namespace}; "
            f"the administrator's setting aws.lend lists {_listed(roles)}"
        )
        raise Blocked(Reason.CREDENTIALS_FORBIDDEN, message)
    if role is None and all(one.roles for one in loans):
        message = (
            f"the operator's own AWS identity is lent to namespace {namespace} for roles alone; "
            f"name one of {_listed(roles)} in spec.aws.credentials.assumeRole"
        )
        raise Blocked(Reason.CREDENTIALS_FORBIDDEN, message)
    return replace(OWN_IDENTITY, role=role)


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
        raise _unusable(secret, f"holds none of {ACCESS_KEY_ID}, {SHARED_FILE}, {EC2_KEYS}; it has {listed_keys(data)}")
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
        raise _unusable(secret, f"key {key}: is not UTF-8 text; save it as such") from None


def _identity(
    where: str, values: Mapping[str, str], *, access_key_id: str, secret_access_key: str, session_token: str
) -> AwsIdentity:
    for name in (access_key_id, secret_access_key, session_token):
        value = values.get(name, "")
        if not value and name != session_token:
            raise Blocked(Reason.AUTH_FAILURE, f"{where} has no {name}")
        if value[:1] in ("'", '"') or value[-1:] in ("'", '"'):
            raise Blocked(Reason.AUTH_FAILURE, f"{where} has {name} in quotes; write it without them")
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
        raise _unusable(secret, f"key {SHARED_FILE}: {line}{_wrong_syntax(error)}") from None
    profiles = _profiles(parser)
    name = _selected(secret, SHARED_FILE, list(profiles), profile)
    settings = profiles[name]
    where = f"Secret {secret} key {SHARED_FILE} profile {name}"
    _judge_settings(where, settings)
    return _identity(
        where,
        settings,
        access_key_id=_ID_SETTING,
        secret_access_key=_KEY_SETTING,
        session_token=_TOKEN_SETTING,
    )


def _wrong_syntax(error: configparser.Error) -> str:
    if isinstance(error, configparser.MissingSectionHeaderError):
        return f"not a credentials file: it has to begin with a [profile]; NixOps' file goes under the key {EC2_KEYS}"
    if isinstance(error, configparser.DuplicateOptionError):
        return "one setting stands there twice in one profile"
    if isinstance(error, configparser.DuplicateSectionError):
        return "a profile stands there twice"
    return "not a credentials file: neither a [profile] nor a setting = value"


def _profiles(parser: configparser.RawConfigParser) -> dict[str, Mapping[str, str]]:
    """Name → settings. A plain section wins over the one of `~/.aws/config`'s style."""
    found: dict[str, Mapping[str, str]] = {}
    for section in parser.sections():
        name = section.removeprefix(_PROFILE_PREFIX).strip()
        if not section.startswith(_NO_PROFILES) and (section == name or name not in parser):
            found[name] = parser[section]
    return found


def _judge_settings(where: str, settings: Mapping[str, str]) -> None:
    """Raises Blocked with words about what is there instead of keys."""
    has_keys = bool(settings.get(_ID_SETTING) and settings.get(_KEY_SETTING))
    foreign = _GO_BEFORE_KEYS if has_keys else (*_GO_BEFORE_KEYS, *_INSTEAD_OF_KEYS)
    if found := [name for name in foreign if name in settings]:
        is_role = found[0] == "role_arn"
        raise Blocked(
            Reason.AUTH_FAILURE,
            f"{where} has {found[0]}, which is not supported here; give {_ID_SETTING} and {_KEY_SETTING}, with"
            f" {_TOKEN_SETTING} if they are temporary"
            + (", and name the role in spec.aws.credentials.assumeRole" if is_role else ""),
        )
    if settings and not settings.keys() & {_ID_SETTING, _KEY_SETTING, _TOKEN_SETTING}:
        raise Blocked(
            Reason.AUTH_FAILURE,
            f"{where} has no {_ID_SETTING}: a file like ~/.aws/config does not do, give ~/.aws/credentials",
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
    alias: str | None = None


def _from_ec2_keys(secret: str, text: str, profile: str | None) -> AwsIdentity:
    words = {number: line.partition("#")[0].split() for number, line in enumerate(text.splitlines(), start=1)}
    lines = [_Line(*line) for line in words.values() if len(line) in (2, 3)]
    skipped = [number for number, line in words.items() if line and len(line) not in (2, 3)]
    entry = _selected_line(secret, lines, skipped, profile)
    return _identity(
        f"Secret {secret} key {EC2_KEYS}",
        {ACCESS_KEY_ID: entry.access_key_id, SECRET_ACCESS_KEY: entry.secret_access_key},
        access_key_id=ACCESS_KEY_ID,
        secret_access_key=SECRET_ACCESS_KEY,
        session_token=SESSION_TOKEN,
    )


def _selected_line(secret: str, lines: list[_Line], skipped: list[int], profile: str | None) -> _Line:
    wanted = profile or DEFAULT_PROFILE
    for line in lines:
        if wanted in (line.alias, line.access_key_id):
            return line
    if profile is None and len(lines) == 1:
        return lines[0]
    numbers = ", ".join(map(str, skipped))
    without = f" (not of that form: line {numbers})" if skipped else ""
    if not lines:
        raise _unusable(
            secret, f"key {EC2_KEYS} has no line of the form ACCESS-KEY-ID SECRET-ACCESS-KEY ALIAS{without}"
        )
    aliases = _listed([line.alias for line in lines if line.alias])
    without = f"; skipped, as not of two or three words: line {numbers}" if skipped else ""
    if profile is None:
        what = f"has no alias {DEFAULT_PROFILE}; set profile to one of {aliases}"
    else:
        what = f"has neither alias nor access key id {profile}; its aliases: {aliases}"
    raise _unusable(secret, f"key {EC2_KEYS} {what}{without}")
