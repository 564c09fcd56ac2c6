"""Credentials as NixOps and AWS CLI users have them, out of a Secret."""

from __future__ import annotations

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import AwsIdentity, aws_identity
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
    ],
)
def test_credentials_are_read(data: dict[str, bytes], profile: str | None, identity: AwsIdentity) -> None:
    assert aws_identity("aws", data, profile) == identity


@pytest.mark.parametrize(
    ("data", "profile", "words"),
    [
        pytest.param({}, None, "holds none of accessKeyId, credentials, ec2-keys", id="empty"),
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
        pytest.param({"credentials": f"{ID}\n{KEY}".encode()}, None, "line 1: not a credentials file", id="no section"),
        pytest.param({"credentials": f"[default]\n{KEY}".encode()}, None, "not a credentials file", id="not a setting"),
        pytest.param(
            {"credentials": b"[default]\nrole_arn = arn:aws:iam::1:role/x\nsource_profile = default"},
            None,
            "profile default has no aws_access_key_id",
            id="a profile that needs more than a file",
        ),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, "prod", "aliases: production, staging", id="unknown alias"),
        pytest.param({"ec2-keys": EC2_KEYS.encode()}, None, "one of production, staging", id="which alias?"),
        pytest.param({"ec2-keys": f"# mine\n{ID}".encode()}, None, "line 2 is not of the form", id="half a line"),
        pytest.param({"ec2-keys": f"{ID} {KEY} a b".encode()}, None, "line 1 is not of the form", id="four words"),
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
    assert repr(AwsIdentity(ID, KEY, "token")) == f"AwsIdentity(access_key_id='{ID}')"
