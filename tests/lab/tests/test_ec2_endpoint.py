"""The endpoint itself: who may call, what is written down, what moto answers, which faults can be set."""

import asyncio
import base64
import hashlib
import json
import socket
import time
import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from nixops_lab.ec2 import Ec2Layer, MotoServer
from nixops_lab.ec2.testing import ACCESS_KEY, SECRET_KEY, FakeMachines, client_of, eventually

pytest_plugins = ["nixops_lab.ec2.fixtures"]


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def last(layer, operation):
    return [entry for entry in layer.log() if entry["operation"] == operation][-1]


# Callers.


def test_an_unknown_access_key_fails_authentication(layer):
    stranger = layer.client(access_key="AKIASTRANGER00000000")
    assert refusal(stranger.describe_instances) == ("AuthFailure", 401)


def test_sts_has_its_own_code_for_an_unknown_access_key(layer):
    stranger = layer.client("sts", access_key="AKIASTRANGER00000000")
    assert refusal(stranger.get_caller_identity) == ("InvalidClientTokenId", 403)


@pytest.mark.parametrize(("service", "operation"), [("ec2", "describe_instances"), ("sts", "get_caller_identity")])
def test_a_wrong_secret_key_does_not_match_the_signature_of(service, operation, layer):
    impostor = layer.client(service, secret_key="guessed")
    assert refusal(getattr(impostor, operation)) == ("SignatureDoesNotMatch", 403)


def test_a_body_that_was_changed_after_signing_does_not_match(ec2, layer):
    def change_version(request, **_kwargs):
        request.body = request.body.replace("2016-11-15", "2014-10-01")

    ec2.meta.events.register("before-send.ec2.DescribeInstances", change_version)
    assert refusal(ec2.describe_instances) == ("SignatureDoesNotMatch", 403)


def test_a_request_without_a_signature_is_refused(layer):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{layer.url}/?Action=DescribeInstances&Version=2016-11-15", timeout=30)  # noqa: S310
    with caught.value as reply:
        assert reply.code == 403
        assert b"<Code>MissingAuthenticationToken</Code>" in reply.read()


# What is not served here.


def test_sts_is_answered_by_moto(layer):
    assert layer.client("sts").get_caller_identity()["Account"] == "123456789012"


def test_subnets_vpcs_and_instance_types_are_answered_by_moto(ec2):
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    assert vpc["CidrBlock"] == "172.31.0.0/16"
    assert {subnet["VpcId"] for subnet in ec2.describe_subnets()["Subnets"]} == {vpc["VpcId"]}
    (kind,) = ec2.describe_instance_types(InstanceTypes=["t3.small"])["InstanceTypes"]
    assert kind["ProcessorInfo"]["SupportedArchitectures"] == ["x86_64"]


def test_what_the_lab_does_not_model_is_refused_instead_of_pretended(ec2):
    assert refusal(ec2.create_vpn_gateway, Type="ipsec.1") == ("UnsupportedOperation", 400)


@pytest.mark.parametrize(
    ("form", "code"),
    [
        pytest.param("Action=Dance", "InvalidAction", id="unknown action"),
        pytest.param("Action=DescribeInstances&Colour=red", "UnknownParameter", id="unknown parameter"),
        pytest.param("Action=TerminateInstances", "MissingParameter", id="missing parameter"),
        pytest.param("Action=DescribeInstances&MaxResults=many", "InvalidParameterValue", id="text for a number"),
    ],
)
def test_a_malformed_request_is_refused(form, code, ec2):
    def replace_body(request, **_kwargs):
        request.data = f"{form}&Version=2016-11-15"

    ec2.meta.events.register("before-sign.ec2.DescribeInstances", replace_body)
    assert refusal(ec2.describe_instances) == (code, 400)


# The call log.


def test_each_call_is_one_line_with_caller_parameters_and_result(cases, ec2, layer):
    instance_id = cases.launch(ClientToken="n1-one")
    entry = last(layer, "RunInstances")
    assert (entry["caller"], entry["caller_name"], entry["region"]) == (ACCESS_KEY, "lab", "us-west-2")
    assert entry["parameters"]["MinCount"] == 1
    assert entry["parameters"]["ImageId"] == cases.image_id
    assert (entry["result"], entry["status"], entry["committed"], entry["fault"]) == ("ok", 200, True, None)
    assert entry["token"] == "n1-one"
    assert instance_id in entry["resources"]
    assert [entry["seq"] for entry in layer.log()] == list(range(1, len(layer.log()) + 1))


def test_parameters_are_nested_as_boto3_nests_them(ec2, layer):
    filters = [{"Name": "tag:a", "Values": ["1", "2"]}]
    ec2.describe_instances(Filters=filters)
    assert last(layer, "DescribeInstances")["parameters"] == {"Filters": filters}


def test_user_data_is_logged_as_its_sha256_only(cases, layer):
    cases.launch(UserData="SSH_HOST_ED25519_KEY:secret")
    digest = hashlib.sha256(b"SSH_HOST_ED25519_KEY:secret").hexdigest()
    assert last(layer, "RunInstances")["parameters"]["UserData"] == f"sha256:{digest}"
    encoded = base64.b64encode(b"SSH_HOST_ED25519_KEY:secret").decode()
    written = layer.log_path.read_text()
    assert "secret" not in written
    assert encoded not in written


def test_a_refused_call_is_logged_with_its_code(ec2, layer):
    refusal(ec2.terminate_instances, InstanceIds=["i-0123456789abcdef0"])
    entry = last(layer, "TerminateInstances")
    assert (entry["result"], entry["status"], entry["committed"]) == ("InvalidInstanceID.NotFound", 400, False)
    assert entry["resources"] == ["i-0123456789abcdef0"]


def test_a_strangers_call_is_logged_too(layer):
    refusal(layer.client(access_key="AKIASTRANGER00000000").describe_instances)
    entry = last(layer, "DescribeInstances")
    assert (entry["caller"], entry["caller_name"], entry["result"]) == ("AKIASTRANGER00000000", None, "AuthFailure")


def test_a_call_that_moto_answers_is_logged_like_any_other(ec2, layer):
    layer.client("sts").get_caller_identity()
    assert (last(layer, "GetCallerIdentity")["service"], last(layer, "GetCallerIdentity")["result"]) == ("sts", "ok")
    refusal(ec2.describe_instance_types, InstanceTypes=["t9.huge"])
    assert last(layer, "DescribeInstanceTypes")["result"] == "InvalidInstanceType"


def test_the_control_interface_gives_the_log_from_any_point(ec2, layer):
    ec2.describe_instances()
    ec2.describe_key_pairs()
    every = layer.control("GET", "/ec2/log")
    assert every == layer.log()
    assert layer.control("GET", f"/ec2/log?since={every[-2]['seq']}") == every[-1:]


# Faults.


def test_commit_drop_takes_effect_and_gives_no_reply(ec2, layer):
    layer.fault("commit-drop", "CreateSecurityGroup")
    with pytest.raises(ConnectionClosedError):
        ec2.create_security_group(GroupName="web", Description="web")
    assert ec2.describe_security_groups(GroupNames=["web"])["SecurityGroups"]
    entry = last(layer, "CreateSecurityGroup")
    assert (entry["fault"], entry["result"], entry["committed"], entry["status"]) == ("commit-drop", "ok", True, None)


def test_drop_has_no_effect_and_gives_no_reply(ec2, layer):
    layer.fault("drop", "CreateSecurityGroup")
    with pytest.raises(ConnectionClosedError):
        ec2.create_security_group(GroupName="web", Description="web")
    assert refusal(ec2.describe_security_groups, GroupNames=["web"])[0] == "InvalidGroup.NotFound"
    entry = last(layer, "CreateSecurityGroup")
    assert (entry["fault"], entry["result"], entry["committed"], entry["status"]) == ("drop", None, False, None)


def test_an_error_is_given_with_code_and_status_and_has_no_effect(ec2, layer):
    layer.fault("error", "CreateSecurityGroup", code="RequestLimitExceeded", status=503)
    assert refusal(ec2.create_security_group, GroupName="web", Description="web") == ("RequestLimitExceeded", 503)
    assert refusal(ec2.describe_security_groups, GroupNames=["web"])[0] == "InvalidGroup.NotFound"


def test_an_error_after_the_fact_takes_effect(ec2, layer):
    layer.fault("error", "CreateSecurityGroup", when="after")
    assert refusal(ec2.create_security_group, GroupName="web", Description="web") == ("InternalError", 500)
    assert ec2.describe_security_groups(GroupNames=["web"])["SecurityGroups"]


def test_a_hanging_call_never_answers_and_has_no_effect(layer, ec2):
    layer.fault("hang", "CreateSecurityGroup")
    with pytest.raises(ReadTimeoutError):
        layer.client(read_timeout=0.3).create_security_group(GroupName="web", Description="web")
    assert refusal(ec2.describe_security_groups, GroupNames=["web"])[0] == "InvalidGroup.NotFound"


def test_a_delayed_call_answers_late(ec2, layer):
    layer.fault("delay", "DescribeInstances", seconds=0.2)
    begun = time.monotonic()
    ec2.describe_instances()
    assert time.monotonic() - begun >= 0.2
    assert last(layer, "DescribeInstances")["fault"] == "delay"


def test_the_nth_matching_call_is_met_and_no_other(ec2, layer):
    layer.fault("error", "DescribeInstances", nth=2)
    ec2.describe_instances()
    ec2.describe_key_pairs()
    assert refusal(ec2.describe_instances)[0] == "InternalError"
    ec2.describe_instances()


def test_times_says_how_many_calls_are_met(ec2, layer):
    layer.fault("error", "DescribeInstances", times=2)
    assert [refusal(ec2.describe_instances)[0] for _ in range(2)] == ["InternalError"] * 2
    ec2.describe_instances()


def test_a_fault_may_ask_for_a_parameter(ec2, layer):
    layer.fault("error", "Describe*", param={"Filters.Values": "nixops*"})
    ec2.describe_instances(Filters=[{"Name": "key-name", "Values": ["web"]}])
    nixops = [{"Name": "key-name", "Values": ["web", "nixops-1"]}]
    assert refusal(ec2.describe_key_pairs, Filters=nixops)[0] == "InternalError"


def test_a_fault_may_meet_sts(layer):
    layer.fault("error", "GetCallerIdentity", code="Throttling", status=400)
    assert refusal(layer.client("sts").get_caller_identity) == ("Throttling", 400)


def test_set_faults_tell_how_often_they_were_met(ec2, layer):
    layer.fault("error", "DescribeInstances", times=2)
    refusal(ec2.describe_instances)
    (fault,) = layer.control("GET", "/faults")
    assert (fault["op"], fault["seen"], fault["fired"]) == ("DescribeInstances", 1, 1)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        pytest.param("/faults", {"match": {"op": "RunInstances"}, "do": "explode"}, id="unknown fault"),
        pytest.param("/faults", {"match": {"operation": "RunInstances"}, "do": "drop"}, id="unknown way to match"),
        pytest.param("/faults", {"match": {"op": "RunInstances", "nth": "first"}, "do": "drop"}, id="text for a count"),
        pytest.param("/knobs", {"speed": 1}, id="unknown knob"),
        pytest.param("/knobs", {"pending_seconds": "soon"}, id="no number"),
        pytest.param("/knobs", {"pending_seconds": -1}, id="time before now"),
        pytest.param("/knobs", [1], id="no object"),
    ],
)
def test_the_control_interface_refuses(path, content, layer):
    before = (layer.control("GET", "/knobs"), layer.control("GET", "/faults"))
    with pytest.raises(urllib.error.HTTPError) as caught:
        layer.control("POST", path, content)
    with caught.value as reply:
        assert reply.code == 400
        assert json.load(reply)["error"]
    assert (layer.control("GET", "/knobs"), layer.control("GET", "/faults")) == before


def test_knobs_may_be_given_as_text(layer):
    layer.control("POST", "/knobs", {"pending_seconds": "1.5"})
    assert layer.control("GET", "/knobs")["pending_seconds"] == 1.5


def test_reset_takes_faults_away_and_sets_the_knobs_back_but_keeps_instances(cases, ec2, layer):
    instance_id = cases.launch()
    layer.fault("error", "DescribeInstances")
    layer.turn(**{"visibility.ids": 3600})
    layer.control("POST", "/reset", {})
    assert cases.describe(instance_id)["InstanceId"] == instance_id
    assert layer.control("GET", "/knobs")["visibility.ids"] == 0
    assert layer.control("GET", "/knobs")["pending_seconds"] > 0


def test_a_hanging_call_does_not_hold_others_up(ec2, layer):
    layer.fault("hang", "DescribeKeyPairs")
    with pytest.raises(ReadTimeoutError):
        layer.client(read_timeout=0.3).describe_key_pairs()
    assert eventually(lambda: ec2.describe_key_pairs()["KeyPairs"] == [])


# The process behind.


async def test_a_layer_starts_and_ends_its_own_moto(tmp_path):
    layer = Ec2Layer(FakeMachines(), {ACCESS_KEY: (SECRET_KEY, "lab")}, tmp_path / "ec2.log")
    port = await layer.start("127.0.0.1", 0)
    try:
        client = client_of(f"http://127.0.0.1:{port}")
        reply = await asyncio.to_thread(client.describe_vpcs)
        client.close()
    finally:
        await layer.stop()
    assert len(reply["Vpcs"]) == 1
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", layer.moto_port)


async def test_a_moto_that_cannot_listen_is_an_error_that_says_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError, match=f"cannot listen on 127.0.0.1:{port}"):
            await MotoServer(port).start()
