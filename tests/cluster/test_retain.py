"""What `deletionPolicy: Retain` leaves serves on, and can still be logged in to."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import specs
from cluster.place import Place
from cluster.polling import eventually

DEPLOYMENT, KEY_SECRET = "site", "site-key-ssh"


@pytest.fixture
def retaining(place: Place) -> Iterator[Place]:
    """At the end the account's owner takes away what is left, as a person would have to."""
    yield place
    place.take_away()


def secrets(place: Place) -> set[str]:
    return set(place.kubectl("get", "secrets", "--output=jsonpath={.items[*].metadata.name}").split())


@pytest.mark.parametrize("cascade", ["background", "foreground"])
def test_what_is_retained_serves_on_and_can_be_logged_in_to(retaining: Place, tmp_path: Path, cascade: str) -> None:
    place = retaining
    place.aws_secret()
    place.apply(specs.on_ec2(specs.page("Kept")))
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    before = place.left_in_ec2()
    (instance,) = place.live_instances()
    place.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": "/spec/deletionPolicy", "value": "Retain"})
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")

    place.kubectl("delete", "nixdeployment", DEPLOYMENT, f"--cascade={cascade}", "--timeout=60s")

    assert place.objects() == []
    assert place.left_in_ec2() == before
    of_instance = [{"Name": "attachment.instance-id", "Values": [instance["InstanceId"]]}]
    volumes = place.ec2.describe_volumes(Filters=of_instance)["Volumes"]
    for thing in (*place.live_instances(), *volumes, *place.groups(), *place.key_pairs()):
        assert {"Key": "nixops.dev:retained", "Value": "true"} in thing["Tags"]
    assert place.title(instance["PublicIpAddress"]) == "Kept"
    # When the garbage collector has taken the Secrets that go with their owners, this one is still there.
    eventually(lambda: secrets(place) == {"aws", KEY_SECRET}, "of the operator's Secrets only the key's stays")
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(base64.b64decode(place.get("secret", KEY_SECRET)["data"]["ssh-privatekey"]))
    login = ["ssh", "-i", str(key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    done = place.lab.run([*login, f"root@{instance['PublicIpAddress']}", "hostname"])
    assert done.stdout.strip()
