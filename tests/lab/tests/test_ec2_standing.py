"""What a caller meets for as long as a knob says so: no rights, no room, no answer; its neighbour is left alone."""

import json
import urllib.error

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, ReadTimeoutError

from nixops_lab.control import Control
from nixops_lab.daemon import policies
from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.knobs import Knobs
from nixops_lab.ec2.standing import Caller, admit
from nixops_lab.ec2.testing import ACCESS_KEY
from nixops_lab.report import LabError

pytest_plugins = ["nixops_lab.ec2.fixtures"]

KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIs0LU5k+l1QwTk7ahaA6YDEcLsMVxIPGAGkiZJlfrnl"
SOON = 0.3


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def last(layer):
    return layer.log()[-1]


# Rights.


@pytest.mark.parametrize("who", ["lab", ACCESS_KEY])
def test_a_caller_without_the_right_is_refused_and_its_neighbour_is_not(who, ec2, layer):
    layer.turn(**{f"deny.{who}": "DescribeKeyPairs,*Security*"})
    assert refusal(ec2.describe_key_pairs) == ("UnauthorizedOperation", 403)
    assert refusal(ec2.describe_security_groups) == ("UnauthorizedOperation", 403)
    assert (last(layer)["result"], last(layer)["committed"]) == ("UnauthorizedOperation", False)
    ec2.describe_instances()
    layer.neighbour().describe_key_pairs()
    layer.turn(**{f"deny.{who}": "off"})
    ec2.describe_key_pairs()


@pytest.mark.parametrize("who", ["operator", "neighbour"])
def test_the_operators_keys_may_do_what_its_documentation_asks_for_and_nothing_else(who):
    caller, policy = Caller("AKIA", who, "ec2"), policies()[who]
    admit(Knobs(), caller, "RunInstances", {"TagSpecifications": [{}]}, policy)
    with pytest.raises(Ec2Error, match="is not authorized to perform: ec2:CreateImage"):
        admit(Knobs(), caller, "CreateImage", {}, policy)
    with pytest.raises(Ec2Error, match="is not authorized to perform: ec2:CreateTags"):
        admit(Knobs(), caller, "RunInstances", {"TagSpecifications": [{}]}, policy - {"CreateTags"})


def test_a_launch_that_happened_cannot_be_repeated_once_the_right_is_withdrawn(cases, ec2, layer):
    layer.fault("commit-drop", "RunInstances")
    with pytest.raises(ConnectionClosedError):
        cases.reply(ClientToken="n1-one")
    layer.turn(**{"deny.lab": "RunInstances"})
    assert refusal(cases.reply, ClientToken="n1-one") == ("UnauthorizedOperation", 403)
    assert len(ec2.describe_instances()["Reservations"]) == 1


def test_a_launch_that_happened_is_given_again_though_its_key_pair_and_group_are_gone(cases, ec2):
    """EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests": a retry of a request that succeeded
    succeeds without any further action."""
    ec2.import_key_pair(KeyName="web", PublicKeyMaterial=KEY)
    group_id = ec2.create_security_group(GroupName="web", Description="web")["GroupId"]
    params = {"ClientToken": "n1-one", "KeyName": "web", "SecurityGroupIds": [group_id]}
    instance_id = cases.until(cases.launch(**params), "running")
    ec2.delete_key_pair(KeyName="web")
    (default,) = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"]
    ec2.modify_instance_attribute(InstanceId=instance_id, Groups=[default["GroupId"]])
    ec2.delete_security_group(GroupId=group_id)
    assert cases.launch(**params) == instance_id
    assert refusal(cases.reply, **(params | {"ClientToken": "n1-two"}))[0] == "InvalidKeyPair.NotFound"


def test_who_may_not_tag_can_create_nothing_with_tags(cases, ec2, layer):
    layer.turn(**{"deny.lab": "CreateTags"})
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "a", "Value": "b"}]}]
    assert refusal(cases.reply, TagSpecifications=tags) == ("UnauthorizedOperation", 403)
    assert ec2.describe_instances()["Reservations"] == []
    assert cases.launch()


def test_a_dry_run_tells_the_missing_right(cases, layer):
    layer.turn(**{"deny.lab": "RunInstances"})
    assert refusal(cases.reply, DryRun=True)[0] == "UnauthorizedOperation"


def test_who_one_is_may_be_asked_without_any_right(layer):
    layer.turn(**{"deny.lab": "*"})
    assert layer.client("sts").get_caller_identity()["Account"] == "123456789012"
    assert refusal(layer.client("sts").get_session_token) == ("AccessDenied", 403)


def test_a_throttled_caller_is_refused_and_its_neighbour_is_not(ec2, layer):
    layer.turn(**{"throttle.lab": "*"})
    assert refusal(ec2.describe_instances) == ("RequestLimitExceeded", 503)
    assert refusal(layer.client("sts").get_caller_identity) == ("Throttling", 400)
    layer.neighbour().describe_instances()


# No answer.


def test_a_silent_endpoint_answers_neither_the_chosen_operations_nor_sts(ec2, layer):
    layer.turn(**{"silent.lab": "GetCallerIdentity,CreateSecurityGroup"})
    with pytest.raises(ReadTimeoutError):
        layer.client("sts", read_timeout=SOON).get_caller_identity()
    with pytest.raises(ReadTimeoutError):
        layer.client(read_timeout=SOON).create_security_group(GroupName="web", Description="web")
    assert (last(layer)["fault"], last(layer)["result"], last(layer)["committed"]) == ("silent", None, False)
    assert len(ec2.describe_security_groups()["SecurityGroups"]) == 1


def test_an_endpoint_that_is_silent_to_one_answers_the_other(layer):
    layer.turn(**{"silent.neighbour": "*"})
    with pytest.raises(ReadTimeoutError):
        layer.neighbour(read_timeout=SOON).describe_instances()
    with pytest.raises(ReadTimeoutError):
        layer.neighbour("sts", read_timeout=SOON).get_caller_identity()
    layer.client().describe_instances()
    layer.client("sts").get_caller_identity()


def test_a_reset_connection_has_no_effect_and_no_reply(ec2, layer):
    layer.turn(**{"reset.lab": "Create*"})
    with pytest.raises(ConnectionClosedError):
        ec2.create_security_group(GroupName="web", Description="web")
    assert last(layer)["fault"] == "reset"
    layer.turn(**{"reset.lab": "off"})
    assert len(ec2.describe_security_groups()["SecurityGroups"]) == 1
    layer.neighbour().create_security_group(GroupName="web", Description="web")


def test_an_endpoint_where_nobody_listens_refuses_connections_old_and_new_until_it_is_back(ec2, layer):
    ec2.describe_instances()
    layer.turn(**{"endpoint.refuses": True})
    for client in (ec2, layer.client()):
        with pytest.raises(EndpointConnectionError):
            client.describe_instances()
    layer.turn(**{"endpoint.refuses": False})
    ec2.describe_instances()


def test_reset_opens_the_endpoint_and_gives_all_rights_back(ec2, layer):
    layer.turn(**{"endpoint.refuses": True, "deny.lab": "*", "silent.neighbour": "*"})
    layer.control("POST", "/reset", {})
    ec2.describe_instances()
    layer.neighbour().describe_instances()
    assert not [name for name in layer.control("GET", "/knobs") if name.startswith(("deny", "silent"))]


# The knobs' names and values.


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("deny.neighbor", "*", "deny.neighbor: there is no such knob; did you mean deny.neighbour?"),
        ("deny.lab", "RunInstance", "deny.lab: there is no operation RunInstance; did you mean RunInstances?"),
        ("silent.lab", 5, "silent.lab: takes names of operations with commas between them"),
        ("endpoint.refuses", "maybe", "endpoint.refuses: takes true or false"),
    ],
)
def test_a_knob_is_refused_with_what_was_probably_meant(name, value, told, layer):
    with pytest.raises(urllib.error.HTTPError) as caught:
        layer.turn(**{name: value})
    with caught.value as reply:
        assert json.load(reply)["error"] == told


def test_a_person_is_told_what_was_probably_meant(layer):
    with pytest.raises(LabError) as caught:
        Control(layer.control_url).set_knobs({"deny.neighbor": "*"})
    assert str(caught.value) == "deny.neighbor: there is no such knob; did you mean deny.neighbour?"


def test_the_knobs_that_are_set_are_told(layer):
    layer.turn(**{"deny.lab": "RunInstances, Describe*"})
    assert layer.control("GET", "/knobs")["deny.lab"] == "RunInstances,Describe*"


# Limits of calls.


def test_a_call_beyond_ec2_s_published_limits_is_refused_until_there_is_a_token_again(cases, layer):
    layer.turn(**{"buckets.factor": 1})
    for number in range(5):
        cases.reply(ClientToken=f"n1-{number}")
    assert refusal(cases.reply, ClientToken="n1-5") == ("RequestLimitExceeded", 503)

    layer.clock.advance(0.5)
    cases.reply(ClientToken="n1-5")
    layer.turn(**{"buckets.factor": "off"})
    cases.reply(ClientToken="n1-6")
