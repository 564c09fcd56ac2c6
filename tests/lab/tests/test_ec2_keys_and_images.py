"""Key pairs and images, as EC2 shows them."""

import base64
import hashlib
import subprocess

import pytest
from botocore.exceptions import ClientError

pytest_plugins = ["nixops_lab.ec2.fixtures"]

BLOB = "AAAAC3NzaC1lZDI1NTE5AAAAIIs0LU5k+l1QwTk7ahaA6YDEcLsMVxIPGAGkiZJlfrnl"
KEY = f"ssh-ed25519 {BLOB} someone@somewhere".encode()
NIXOS = "427812963091"


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


def test_the_fingerprint_of_an_ed25519_key_is_the_base64_of_its_sha256(ec2):
    reply = ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    assert reply["KeyFingerprint"] == base64.b64encode(hashlib.sha256(base64.b64decode(BLOB)).digest()).decode()
    assert reply["KeyPairId"].startswith("key-")


def test_the_fingerprint_of_an_imported_rsa_key_is_the_md5_of_its_public_der(ec2, tmp_path):
    private = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-b", "2048", "-N", "", "-m", "PEM", "-f", private], check=True)
    der = subprocess.run(
        ["openssl", "rsa", "-in", private, "-pubout", "-outform", "DER"], check=True, capture_output=True
    ).stdout
    reply = ec2.import_key_pair(KeyName="web", PublicKeyMaterial=private.with_suffix(".pub").read_bytes())
    assert reply["KeyFingerprint"] == hashlib.md5(der, usedforsecurity=False).digest().hex(":")
    assert ec2.describe_key_pairs(KeyNames=["web"])["KeyPairs"][0]["KeyType"] == "rsa"


@pytest.mark.parametrize(
    "material",
    [
        pytest.param(b"hello", id="no key at all"),
        pytest.param(b"ssh-ed25519 AAAA", id="a broken blob"),
        pytest.param(f"ssh-rsa {BLOB}".encode(), id="another type than its blob's"),
        pytest.param(
            b"ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBEmKSENjQEezOmxkZMy7opKgwFB9nkt5Y"
            b"RrYMjNuG5N87uRgg6CLrbo5wAdT/y6v0mKV0U2w0WZ2YB/++Tpockg=",
            id="a type that EC2 does not take",
        ),
    ],
)
def test_an_import_is_refused_for(material, ec2):
    assert refusal(ec2.import_key_pair, KeyName="web", PublicKeyMaterial=material) == "InvalidKey.Format"


def test_a_second_import_under_the_name_is_refused_even_with_the_same_key(ec2):
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    assert refusal(ec2.import_key_pair, KeyName="web", PublicKeyMaterial=KEY) == "InvalidKeyPair.Duplicate"


def test_the_public_key_is_shown_on_demand_only(ec2):
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    (without,) = ec2.describe_key_pairs(KeyNames=["web"])["KeyPairs"]
    (shown,) = ec2.describe_key_pairs(KeyNames=["web"], IncludePublicKey=True)["KeyPairs"]
    assert "PublicKey" not in without
    assert shown["PublicKey"].split()[:2] == ["ssh-ed25519", BLOB]
    assert shown["KeyType"] == "ed25519"


@pytest.mark.parametrize(
    ("params", "code"),
    [
        pytest.param({"KeyNames": ["nobody"]}, "InvalidKeyPair.NotFound", id="unknown name"),
        pytest.param({"KeyPairIds": ["key-0123456789abcdef0"]}, "InvalidKeyPair.NotFound", id="unknown id"),
        pytest.param({"KeyPairIds": ["web"]}, "InvalidKeyPairId.Malformed", id="malformed id"),
    ],
)
def test_describing_key_pairs_is_refused_for_an(params, code, ec2):
    assert refusal(ec2.describe_key_pairs, **params) == code


def test_deleting_a_key_pair_that_is_not_there_succeeds(ec2):
    assert ec2.delete_key_pair(KeyName="nobody")["Return"] is True


def test_a_deleted_key_pair_is_gone_and_its_instances_run_on(cases, ec2):
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    instance_id = cases.running(KeyName="web")
    ec2.delete_key_pair(KeyName="web")
    assert refusal(ec2.describe_key_pairs, KeyNames=["web"]) == "InvalidKeyPair.NotFound"
    shown = cases.describe(instance_id)
    assert (shown["State"]["Name"], shown["KeyName"]) == ("running", "web")


def test_images_are_found_by_owner_name_and_architecture(ec2):
    found = ec2.describe_images(
        Owners=[NIXOS],
        Filters=[
            {"Name": "name", "Values": ["nixos/25.11*-x86_64-linux"]},
            {"Name": "architecture", "Values": ["x86_64"]},
            {"Name": "state", "Values": ["available"]},
        ],
    )["Images"]
    newest = max(found, key=lambda image: image["CreationDate"])
    assert len(found) == 3
    assert newest["Name"].startswith("nixos/25.11.20261101.")
    assert (newest["OwnerId"], newest["State"], newest["EnaSupport"]) == (NIXOS, "available", True)
    assert (newest["RootDeviceName"], newest["Architecture"]) == ("/dev/xvda", "x86_64")


def test_an_older_release_and_the_other_architecture_are_there_too(ec2):
    names = [image["Name"] for image in ec2.describe_images(Owners=[NIXOS])["Images"]]
    assert any(name.startswith("nixos/25.05.") for name in names)
    assert any(name.endswith("-aarch64-linux") for name in names)


def newest(ec2, name, architecture):
    """As somebody looks whose image name tells no architecture."""
    filters = [{"Name": "name", "Values": [name]}, {"Name": "architecture", "Values": [architecture]}]
    images = ec2.describe_images(Owners=[NIXOS], Filters=filters)["Images"]
    return max(images, key=lambda image: image["CreationDate"])


@pytest.mark.parametrize("release", ["25.05", "25.11"])
@pytest.mark.parametrize(("instance_type", "system"), [("t4g.micro", "aarch64-linux"), ("t3.micro", "x86_64-linux")])
def test_each_architecture_has_an_image_of_each_release_that_its_types_launch(
    release, instance_type, system, ec2, cases
):
    (kind,) = ec2.describe_instance_types(InstanceTypes=[instance_type])["InstanceTypes"]
    (architecture,) = kind["ProcessorInfo"]["SupportedArchitectures"]
    image = newest(ec2, f"nixos/{release}*", architecture)
    assert (image["Name"].startswith(f"nixos/{release}."), image["Name"].endswith(f"-{system}")) == (True, True)
    shown = cases.describe(cases.launch(InstanceType=instance_type, ImageId=image["ImageId"]))
    assert shown["Architecture"] == architecture


def test_other_owners_have_no_images(ec2):
    assert ec2.describe_images(Owners=["self"])["Images"] == []
    assert ec2.describe_images(Filters=[{"Name": "owner-id", "Values": ["123456789012"]}])["Images"] == []


def test_an_image_is_described_by_its_id(ec2, cases):
    (image,) = ec2.describe_images(ImageIds=[cases.image_id])["Images"]
    assert image["ImageId"] == cases.image_id


@pytest.mark.parametrize(
    ("image_id", "code"),
    [("ami-0123456789abcdef0", "InvalidAMIID.NotFound"), ("nixos", "InvalidAMIID.Malformed")],
)
def test_describing_an_unknown_image_is_refused(image_id, code, ec2):
    assert refusal(ec2.describe_images, ImageIds=[image_id]) == code
