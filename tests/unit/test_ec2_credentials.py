"""Credentials as NixOps and AWS CLI users have them, out of a Secret."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import (
    OWN_IDENTITY,
    AssumedRole,
    AwsIdentity,
    Lent,
    aws_identity,
    own_identity,
)
from nixops_operator.errors import Blocked

# AWS' own examples of keys (IAM User Guide, "Managing access keys").
ID, KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ID2, KEY2 = "AKIAI44QH8DHBEXAMPLE", "je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY"
ONE, TWO = AwsIdentity(ID, KEY), AwsIdentity(ID2, KEY2)

FILE = f"""
[default]
aws_access_key_id = {ID}
aws_secret_access_key={KEY}

# the other account
[staging]
aws_access_key_id = {ID2}
aws_secret_access_key = {KEY2}
aws_session_token = token%with%percents==
"""
KEYS = f"aws_access_key_id = {ID}\naws_secret_access_key = {KEY}\n"
EC2_KEYS = f"""# my keys
{ID}  {KEY}\tproduction   # the real one

{ID2} {KEY2} staging
"""


def plain(**keys: str) -> dict[str, bytes]:
    return {key: value.encode() for key, value in keys.items()}


@pytest.mark.parametrize(
    ("data", "profile", "identity"),
    [
        pytest.param(plain(accessKeyId=ID, secretAccessKey=KEY), None, ONE, id="plain keys"),
        pytest.param(plain(accessKeyId=f"{ID}\n", secretAccessKey=f"{KEY}\n"), None, ONE, id="plain keys, from files"),
        pytest.param(
            plain(accessKeyId=ID, secretAccessKey=KEY, sessionToken="t=="),
            None,
            AwsIdentity(ID, KEY, "t=="),
            id="plain temporary keys",
        ),
        pytest.param(plain(accessKeyId=ID, secretAccessKey=KEY, note="x"), None, ONE, id="other keys do not matter"),
        pytest.param({"credentials": FILE.encode()}, None, ONE, id="file: default"),
        pytest.param({"credentials": b"\xef\xbb\xbf" + FILE.encode()}, "default", ONE, id="file: byte order mark"),
        pytest.param(
            {"credentials": FILE.encode()},
            "staging",
            AwsIdentity(ID2, KEY2, "token%with%percents=="),
            id="file: profile, temporary keys",
        ),
        pytest.param(
            {"credentials": FILE.replace("[default]", "[only]").partition("# the")[0].encode()},
            None,
            ONE,
            id="file: the only profile",
        ),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, "staging", TWO, id="ec2-keys: alias"),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, ID, ONE, id="ec2-keys: access key id"),
        pytest.param({"ec2-keys": f"{ID} {KEY}".encode()}, None, ONE, id="ec2-keys: the only line, without alias"),
        pytest.param(
            {"ec2-keys": f"{EC2_KEYS}{ID} {KEY} default".encode()}, None, ONE, id="ec2-keys: the alias default"
        ),
        pytest.param(
            {"ec2-keys": f"{ID}\n{ID2} {KEY2} staging of mine\n{ID} {KEY}\n".encode()},
            None,
            ONE,
            id="ec2-keys: lines that NixOps skips",
        ),
        pytest.param(
            {"ec2-keys": b"\xef\xbb\xbf" + EC2_KEYS.replace("\n", "\r\n").encode()},
            "staging",
            TWO,
            id="ec2-keys: from Windows",
        ),
        pytest.param({"credentials": FILE.replace("\n", "\r\n").encode()}, None, ONE, id="file: from Windows"),
        pytest.param(
            {"credentials": FILE.replace("[staging]", "[profile staging]").encode()},
            "staging",
            AwsIdentity(ID2, KEY2, "token%with%percents=="),
            id="file: header in the style of ~/.aws/config",
        ),
        pytest.param(
            {"credentials": f"{FILE}[profile default]\naws_access_key_id = x\n".encode()},
            None,
            ONE,
            id="file: a plain header wins over that style",
        ),
        pytest.param(
            {"credentials": f"[sso-session work]\nsso_region = x\n[me]\n{KEYS}".encode()},
            None,
            ONE,
            id="file: the only profile beside an SSO session",
        ),
        pytest.param(
            {"credentials": f"[default]\nregion = us-west-2\ncredential_process = x\n{KEYS}".encode()},
            None,
            ONE,
            id="file: keys go before a program",
        ),
    ],
)
def test_credentials_are_read(data: dict[str, bytes], profile: str | None, identity: AwsIdentity) -> None:
    assert aws_identity("aws", data, profile) == identity


@pytest.mark.parametrize(
    ("data", "profile", "words"),
    [
        pytest.param({}, None, "holds none of accessKeyId, credentials, ec2-keys; it has none", id="empty"),
        pytest.param(
            {"AWS_ACCESS_KEY_ID": b"x", "AWS_SECRET_ACCESS_KEY": b"y"},
            None,
            "holds none of accessKeyId, credentials, ec2-keys; it has AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
            id="the names of the variables of an environment",
        ),
        pytest.param(plain(accessKeyId=ID), None, "has no secretAccessKey", id="secret key missing"),
        pytest.param(plain(secretAccessKey=KEY), None, "has no accessKeyId", id="id missing"),
        pytest.param(plain(accessKeyId=ID, secretAccessKey=" "), None, "has no secretAccessKey", id="secret key blank"),
        pytest.param(plain(accessKeyId=ID, secretAccessKey=f"{KEY}\n{KEY2}"), None, "line break", id="two secret keys"),
        pytest.param(plain(accessKeyId=ID, secretAccessKey=f"„{KEY}“"), None, "foreign character", id="quoted"),
        pytest.param(plain(accessKeyId=ID, secretAccessKey=KEY), "staging", "no profile staging", id="no profiles"),
        pytest.param({"accessKeyId": b"\xff\xfe"}, None, "accessKeyId: is not UTF-8", id="not text"),
        pytest.param(
            {"credentials": FILE.encode(), "ec2-keys": EC2_KEYS.encode()}, None, "credentials, ec2-keys", id="two forms"
        ),
        pytest.param(
            {"credentials": FILE.encode()}, "prod", "no profile prod; it has default, staging", id="unknown profile"
        ),
        pytest.param(
            {"credentials": FILE.replace("default", "a").encode()}, None, "one of a, staging", id="which profile?"
        ),
        pytest.param({"credentials": b""}, None, "one of none", id="empty file"),
        pytest.param(
            {"credentials": f"{ID}\n{KEY}".encode()},
            None,
            "line 1: not a credentials file: it has to begin with a [profile]",
            id="no section",
        ),
        pytest.param({"credentials": f"[default]\n{KEY}".encode()}, None, "not a credentials file", id="not a setting"),
        *(
            pytest.param(
                {"credentials": f"[default]\n{setting} = x\nregion = y".encode()},
                None,
                f"profile default has {setting}, which is not supported here; give aws_access_key_id and",
                id=f"file: {setting}",
            )
            for setting in (
                *("role_arn", "source_profile", "credential_source", "credential_process", "web_identity_token_file"),
                *("sso_session", "sso_start_url", "sso_account_id", "sso_role_name", "login_session", "mfa_serial"),
            )
        ),
        *(
            pytest.param(
                {"credentials": f"[default]\n{KEYS}{setting} = x".encode()},
                None,
                f"profile default has {setting}, which is not supported here",
                id=f"file: {setting}, which goes before keys",
            )
            for setting in ("role_arn", "web_identity_token_file", "sso_session")
        ),
        pytest.param(
            {"credentials": b"[default]\nregion = us-west-2\noutput = json"},
            None,
            "has no aws_access_key_id: a file like ~/.aws/config does not do, give ~/.aws/credentials",
            id="file: ~/.aws/config",
        ),
        pytest.param(
            {"credentials": f"[default]\n{KEYS}{KEYS}".encode()},
            None,
            "line 4: one setting stands there twice in one profile",
            id="file: a setting twice",
        ),
        pytest.param(
            {"credentials": f"[a]\n{KEYS}[a]\n".encode()},
            None,
            "line 4: a profile stands there twice",
            id="profile twice",
        ),
        *(
            pytest.param(
                {"credentials": f"[default]\naws_access_key_id = {left}{ID}{right}\naws_secret_access_key=x".encode()},
                None,
                "profile default has aws_access_key_id in quotes; write it without them",
                id=f"file: in {name} quotes",
            )
            for name, left, right in (("double", '"', '"'), ("single", "'", "'"), ("half", '"', ""), ("lost", "", "'"))
        ),
        pytest.param(
            plain(accessKeyId=ID, secretAccessKey=f'"{KEY}"'),
            None,
            "has secretAccessKey in quotes; write it without them",
            id="plain keys in quotes",
        ),
        pytest.param({"ec2-keys": f'"{ID}" "{KEY}"'.encode()}, None, "has accessKeyId in quotes", id="quoted ec2-keys"),
        pytest.param({"credentials": FILE.encode("utf-16")}, None, "credentials: is not UTF-8 text", id="UTF-16"),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, "prod", "aliases: production, staging", id="unknown alias"),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, None, "one of production, staging", id="which alias?"),
        pytest.param(
            {"ec2-keys": f"# mine\n{ID}\n\n{ID} {KEY} a b".encode()},
            None,
            "has no line of the form ACCESS-KEY-ID SECRET-ACCESS-KEY ALIAS (not of that form: line 2, 4)",
            id="nothing but lines that NixOps skips",
        ),
        pytest.param(
            {"ec2-keys": f"{EC2_KEYS}{ID} {KEY} prod uction".encode()},
            "prod",
            "its aliases: production, staging; skipped, as not of two or three words: line 5",
            id="the wanted line is one that NixOps skips",
        ),
        pytest.param({"ec2-keys": b""}, None, "has no line of the form", id="ec2-keys: empty"),
    ],
)
def test_what_cannot_be_used_is_named_and_not_told(data: dict[str, bytes], profile: str | None, words: str) -> None:
    with pytest.raises(Blocked) as blocked:
        aws_identity("aws", data, profile)

    assert blocked.value.reason is Reason.AUTH_FAILURE
    assert blocked.value.message.startswith("Secret aws ")
    assert words in blocked.value.message
    assert blocked.value.__suppress_context__ or blocked.value.__context__ is None
    for value in (ID, KEY, ID2, KEY2):
        assert value not in blocked.value.message


def test_a_missing_secret_is_named() -> None:
    with pytest.raises(Blocked) as blocked:
        aws_identity("aws", None)

    assert blocked.value.reason is Reason.SECRET_NOT_FOUND
    assert "Secret aws " in blocked.value.message


def test_an_identity_shows_no_secret() -> None:
    assert repr(AwsIdentity(ID, KEY, "token")) == f"AwsIdentity(access_key_id='{ID}', role=None)"


# --- the operator's own identity ----------------------------------------------------------------------------------

TEAM, OTHER = "arn:aws:iam::123456789012:role/team", "arn:aws:iam::123456789012:role/other"


@pytest.mark.parametrize(
    ("lent", "role", "expected"),
    [
        pytest.param([Lent("a")], None, OWN_IDENTITY, id="lent as it is"),
        pytest.param(
            [Lent("a", (TEAM,))],
            AssumedRole(TEAM, "7"),
            replace(OWN_IDENTITY, role=AssumedRole(TEAM, "7")),
            id="a role",
        ),
        pytest.param([Lent("a"), Lent("a", (TEAM,))], None, OWN_IDENTITY, id="both: itself"),
        pytest.param(
            [Lent("a"), Lent("a", (TEAM,))], AssumedRole(TEAM), replace(OWN_IDENTITY, role=AssumedRole(TEAM)), id="both"
        ),
    ],
)
def test_the_operators_own_identity_is_lent_to_namespaces_that_the_administrator_lists(lent, role, expected):
    assert own_identity(lent, "a", role) == expected


@pytest.mark.parametrize(
    ("lent", "role", "words"),
    [
        pytest.param([], None, "to nobody in namespace a", id="to nobody"),
        pytest.param([Lent("b")], None, "to nobody in namespace a", id="to another namespace"),
        pytest.param([Lent("b", (TEAM,))], AssumedRole(TEAM), "to nobody in namespace a", id="another's role"),
        pytest.param([Lent("a")], AssumedRole(TEAM), "may not act as", id="no role"),
        pytest.param([Lent("a", (TEAM,))], AssumedRole(OTHER), f"lists {TEAM}", id="another role"),
        pytest.param([Lent("a", (TEAM,))], None, f"name one of {TEAM}", id="for a role alone"),
    ],
)
def test_a_tenant_cannot_borrow_more_than_is_lent(lent, role, words):
    """Whoever could name any role that the operator may take on would act with other tenants' rights."""
    with pytest.raises(Blocked, match=words) as refused:
        own_identity(lent, "a", role)

    assert refused.value.reason is Reason.CREDENTIALS_FORBIDDEN
