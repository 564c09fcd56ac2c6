"""AWS credentials in each of the three forms in which people have them."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import specs
from cluster.place import Place

OTHERS = ("AKIAOTHEROTHEROTHER1", "another/secret+key")


def plain(key: str, secret: str) -> dict[str, str]:
    return {"accessKeyId": key, "secretAccessKey": secret}


def credentials_file(key: str, secret: str) -> dict[str, str]:
    other_key, other_secret = OTHERS
    return {
        "credentials": f"[default]\naws_access_key_id = {other_key}\naws_secret_access_key = {other_secret}\n\n"
        f"[nixops-example]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    }


def ec2_keys(key: str, secret: str) -> dict[str, str]:
    return {"ec2-keys": f"# key secret alias\n{' '.join(OTHERS)} other\n{key} {secret} nixops-example\n"}


FORMS = {
    "plain keys": (plain, None),
    "a credentials file and a profile of it": (credentials_file, "nixops-example"),
    "ec2-keys and an alias": (ec2_keys, "nixops-example"),
    "ec2-keys and an access key id": (ec2_keys, ""),
}


@pytest.mark.parametrize(("form", "profile"), FORMS.values(), ids=FORMS.keys())
def test_the_chosen_identity_acts(place: Place, form: Any, profile: str | None) -> None:
    key, secret = place.operator_identity
    place.secret("aws", form(key, secret))
    deployment = specs.on_ec2(specs.page("unused"))
    deployment["spec"] |= {"aws": specs.aws(key if profile == "" else profile), "machines": []}
    place.apply(deployment)
    place.wait_ready("nixdeployment/site")

    assert len(place.key_pairs()) == len(place.groups()) == 1
    assert len(place.calls("ImportKeyPair")) == len(place.calls("CreateSecurityGroup")) == 1
    assert OTHERS[0] not in {call["caller"] for call in place.lab.ec2_log()}
