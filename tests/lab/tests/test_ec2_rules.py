"""Security group rules have one canonical form, and a machine's door follows them."""

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2 import rules
from nixops_lab.ec2.errors import Ec2Error
from nixops_lab.ec2.testing import eventually
from nixops_lab.machines import Rule

pytest_plugins = ["nixops_lab.ec2.fixtures"]

ANYWHERE = "0.0.0.0/0"


def tcp(port, *cidrs, to=None):
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port if to is None else to,
        "IpRanges": [{"CidrIp": cidr} for cidr in cidrs],
    }


def canonical(permission):
    return [key for key, _text in rules.canonical([permission], is_egress=False, group_of={"web": "sg-1"})]


@pytest.fixture
def group(ec2):
    return ec2.create_security_group(GroupName="web", Description="web")["GroupId"]


def ingress(ec2, group_id):
    (shown,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    return shown["IpPermissions"]


def refusal(function, **params):
    with pytest.raises(ClientError) as caught:
        function(**params)
    return caught.value.response["Error"]["Code"]


@pytest.mark.parametrize(
    ("given", "protocol"),
    [("TCP", "tcp"), ("6", "tcp"), ("17", "udp"), ("1", "icmp"), ("58", "icmpv6"), ("all", "-1"), ("050", "50")],
)
def test_a_protocol_has_one_name(given, protocol):
    assert rules.protocol(given) == protocol


@pytest.mark.parametrize("name", ["ssh", "256", "-2", ""])
def test_an_unknown_protocol_is_refused(name):
    with pytest.raises(Ec2Error, match="InvalidParameterValue"):
        rules.protocol(name)


@pytest.mark.parametrize(
    ("version", "given", "block"),
    [
        pytest.param(4, "10.0.0.5/8", "10.0.0.0/8", id="host bits go"),
        pytest.param(6, "2001:DB8:0::1/64", "2001:db8::/64", id="IPv6 is compressed, in lower case, without host bits"),
    ],
)
def test_a_block_has_one_form(version, given, block):
    assert rules.cidr(version, given) == block


@pytest.mark.parametrize(
    ("version", "given"), [(4, "10.0.0.5"), (4, "10.0.0.0/33"), (4, "2001:db8::/64"), (6, "10.0.0.0/8"), (4, "")]
)
def test_a_malformed_block_is_refused(version, given):
    with pytest.raises(Ec2Error, match="InvalidParameterValue: CIDR block"):
        rules.cidr(version, given)


@pytest.mark.parametrize(
    ("protocol", "given", "ports"),
    [
        pytest.param("-1", (22, 22), (None, None), id="all protocols: no ports"),
        pytest.param("50", (22, 22), (None, None), id="other protocols: no ports"),
        pytest.param("icmp", (None, None), (-1, -1), id="icmp: any type"),
        pytest.param("icmp", (-1, 3), (-1, -1), id="icmp: any type has any code"),
        pytest.param("icmp", (8, None), (8, -1), id="icmp: one type, any code"),
        pytest.param("tcp", (0, 65535), (0, 65535), id="tcp: all ports"),
    ],
)
def test_ports_have_one_form(protocol, given, ports):
    assert rules.ports(protocol, *given) == ports


@pytest.mark.parametrize(
    ("protocol", "from_port", "to_port"),
    [
        pytest.param("tcp", None, None, id="tcp without ports"),
        pytest.param("udp", 53, None, id="udp with one port"),
        pytest.param("tcp", 443, 80, id="from above to"),
        pytest.param("tcp", 0, 65536, id="port above 65535"),
        pytest.param("icmp", 256, 0, id="icmp type above 255"),
    ],
)
def test_ports_are_refused_for(protocol, from_port, to_port):
    with pytest.raises(Ec2Error, match="InvalidParameterValue"):
        rules.ports(protocol, from_port, to_port)


def test_a_permission_with_two_peers_is_two_rules():
    assert len(canonical(tcp(22, "10.0.0.0/8", "192.168.0.0/16"))) == 2


def test_a_description_of_other_characters_or_too_long_is_refused():
    assert rules.description("") is None
    for text in ("é", "x" * 256, "<html>"):
        with pytest.raises(Ec2Error, match="Invalid rule description"):
            rules.description(text)


def test_a_new_group_lets_everything_out_and_nothing_in(ec2, group):
    (shown,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    assert shown["IpPermissions"] == []
    (egress,) = shown["IpPermissionsEgress"]
    assert (egress["IpProtocol"], egress["IpRanges"]) == ("-1", [{"CidrIp": ANYWHERE}])
    assert not {"FromPort", "ToPort"} & set(egress)


def test_an_authorized_rule_is_shown_canonically(ec2, group):
    permission = tcp(22, "10.1.2.3/8") | {"IpProtocol": "6"}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    (shown,) = ingress(ec2, group)
    assert (shown["IpProtocol"], shown["IpRanges"]) == ("tcp", [{"CidrIp": "10.0.0.0/8"}])


def test_the_same_rule_written_otherwise_is_a_duplicate(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    again = tcp(22, "10.9.9.9/8") | {"IpProtocol": "6"}
    code = refusal(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[again])
    assert code == "InvalidPermission.Duplicate"


def test_the_same_rule_twice_in_one_call_is_refused(ec2, group):
    twice = [tcp(22, "10.0.0.0/8"), tcp(22, "10.0.0.1/8")]
    assert refusal(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=twice) == "InvalidParameterValue"


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        pytest.param(tcp(22, "10.0.0.0/8"), "InvalidPermission.Duplicate", id="a rule that is there"),
        pytest.param(tcp(443, ANYWHERE, to=80), "InvalidParameterValue", id="a malformed rule"),
        pytest.param({"IpProtocol": "tcp", "FromPort": 1, "ToPort": 1}, "MissingParameter", id="a rule without a peer"),
        pytest.param(
            {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-0123456789abcdef0"}]},
            "InvalidGroup.NotFound",
            id="an unknown group as peer",
        ),
    ],
)
def test_nothing_is_authorized_beside(bad, code, ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    before = ingress(ec2, group)
    call = ec2.authorize_security_group_ingress
    assert refusal(call, GroupId=group, IpPermissions=[tcp(80, ANYWHERE), bad]) == code
    assert ingress(ec2, group) == before


def test_rules_of_equal_ports_are_shown_as_one_permission(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "192.168.0.0/16")])
    (shown,) = ingress(ec2, group)
    assert {entry["CidrIp"] for entry in shown["IpRanges"]} == {"10.0.0.0/8", "192.168.0.0/16"}


def test_a_61st_rule_is_refused_but_ipv6_counts_apart(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, *(f"10.{n}.0.0/16" for n in range(60)))])
    code = refusal(ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[tcp(22, "11.0.0.0/8")])
    assert code == "RulesPerSecurityGroupLimitExceeded"
    ipv6 = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ipv6])


def tcp6(port, *cidrs):
    return {
        "IpProtocol": "tcp",
        "FromPort": port,
        "ToPort": port,
        "Ipv6Ranges": [{"CidrIpv6": cidr} for cidr in cidrs],
    }


SIXTY = [f"10.{n}.0.0/16" for n in range(60)]
SIXTY_OF_IPV6 = [f"2001:db8:{n:x}::/48" for n in range(60)]


@pytest.mark.parametrize(
    ("full", "extra"),
    [
        pytest.param(tcp(22, *SIXTY), tcp(22, "11.0.0.0/8"), id="IPv4"),
        pytest.param(tcp6(22, *SIXTY_OF_IPV6), tcp6(22, "2001:db9::/32"), id="IPv6"),
        pytest.param(
            tcp6(22, *SIXTY_OF_IPV6), {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupName": "web"}]}, id="a group"
        ),
    ],
)
def test_rules_are_only_added_where_there_is_room_before_others_go(full, extra, ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[full])
    call = ec2.authorize_security_group_ingress
    assert refusal(call, GroupId=group, IpPermissions=[extra]) == "RulesPerSecurityGroupLimitExceeded"
    ranges = "IpRanges" if "IpRanges" in full else "Ipv6Ranges"
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[full | {ranges: full[ranges][:1]}])
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[extra])


def test_the_directions_have_their_room_apart(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, *SIXTY)])
    ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[tcp(22, *SIXTY[:59])])
    call = ec2.authorize_security_group_egress
    assert refusal(call, GroupId=group, IpPermissions=[tcp(22, SIXTY[59])]) == "RulesPerSecurityGroupLimitExceeded"


def test_a_rule_cannot_be_changed_into_one_for_which_there_is_no_room(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, *SIXTY)])
    reply = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp6(22, "::/0")])
    wanted = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "11.0.0.0/8"}
    update = {"SecurityGroupRuleId": reply["SecurityGroupRules"][0]["SecurityGroupRuleId"], "SecurityGroupRule": wanted}
    code = refusal(ec2.modify_security_group_rules, GroupId=group, SecurityGroupRules=[update])
    assert code == "RulesPerSecurityGroupLimitExceeded"


def egress(ec2, group_id):
    (shown,) = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]
    return {
        peer
        for permission in shown["IpPermissionsEgress"]
        for peer in [
            *(entry["CidrIp"] for entry in permission["IpRanges"]),
            *(entry["CidrIpv6"] for entry in permission["Ipv6Ranges"]),
        ]
    }


def default_group(ec2, vpc_id):
    filters = [{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "group-name", "Values": ["default"]}]
    return ec2.describe_security_groups(Filters=filters)["SecurityGroups"][0]["GroupId"]


def test_in_a_vpc_with_ipv6_new_groups_let_it_out(layer):
    ec2 = layer.client(region="eu-central-1")
    vpc_id = ec2.create_vpc(CidrBlock="10.1.0.0/16", AmazonProvidedIpv6CidrBlock=True)["Vpc"]["VpcId"]
    made = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc_id)["GroupId"]
    assert egress(ec2, made) == egress(ec2, default_group(ec2, vpc_id)) == {ANYWHERE, "::/0"}
    without = ec2.create_security_group(GroupName="web", Description="web")["GroupId"]
    assert egress(ec2, without) == {ANYWHERE}


@pytest.mark.parametrize("is_changed", [False, True], ids=["as it was made", "changed by hand"])
def test_a_vpc_that_gets_ipv6_lets_it_out_by_its_default_group(is_changed, layer):
    ec2 = layer.client(region="eu-central-1")
    vpc_id = ec2.create_vpc(CidrBlock="10.2.0.0/16")["Vpc"]["VpcId"]
    older = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc_id)["GroupId"]
    default = default_group(ec2, vpc_id)
    if is_changed:
        ec2.authorize_security_group_egress(GroupId=default, IpPermissions=[tcp(22, "10.0.0.0/8")])
    ec2.associate_vpc_cidr_block(VpcId=vpc_id, AmazonProvidedIpv6CidrBlock=True)
    assert ("::/0" in egress(ec2, default)) is not is_changed
    assert egress(ec2, older) == {ANYWHERE}
    newer = ec2.create_security_group(GroupName="newer", Description="web", VpcId=vpc_id)["GroupId"]
    assert egress(ec2, newer) == {ANYWHERE, "::/0"}


def test_rules_are_described_with_id_direction_and_description(ec2, group):
    permission = tcp(22) | {"IpRanges": [{"CidrIp": "10.0.0.0/8", "Description": "office"}]}
    reply = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[permission])
    (added,) = reply["SecurityGroupRules"]
    by_group = [{"Name": "group-id", "Values": [group]}]
    shown = {
        rule["SecurityGroupRuleId"]: rule
        for rule in ec2.describe_security_group_rules(Filters=by_group)["SecurityGroupRules"]
    }
    assert len(shown) == 2
    rule = shown[added["SecurityGroupRuleId"]]
    assert added["SecurityGroupRuleId"].startswith("sgr-")
    assert (rule["IsEgress"], rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == (False, "tcp", 22, 22)
    assert (rule["CidrIpv4"], rule["Description"], rule["GroupId"]) == ("10.0.0.0/8", "office", group)
    (egress,) = (rule for rule in shown.values() if rule["IsEgress"])
    assert (egress["IpProtocol"], egress["FromPort"], egress["ToPort"]) == ("-1", -1, -1)


def test_a_rule_is_revoked_by_its_id(ec2, group):
    reply = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8", "192.168.0.0/16")])
    gone = next(rule for rule in reply["SecurityGroupRules"] if rule["CidrIpv4"] == "10.0.0.0/8")
    ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[gone["SecurityGroupRuleId"]])
    assert ingress(ec2, group)[0]["IpRanges"] == [{"CidrIp": "192.168.0.0/16"}]
    again = refusal(
        ec2.revoke_security_group_ingress, GroupId=group, SecurityGroupRuleIds=[gone["SecurityGroupRuleId"]]
    )
    assert again == "InvalidSecurityGroupRuleId.NotFound"


def test_an_egress_rule_is_not_revoked_as_ingress(ec2, group):
    (egress,) = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])[
        "SecurityGroupRules"
    ]
    rule_ids = [egress["SecurityGroupRuleId"]]
    code = refusal(ec2.revoke_security_group_ingress, GroupId=group, SecurityGroupRuleIds=rule_ids)
    assert code == "InvalidSecurityGroupRuleId.NotFound"
    ec2.revoke_security_group_egress(GroupId=group, SecurityGroupRuleIds=rule_ids)
    assert ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissionsEgress"] == []


def test_a_rule_is_revoked_by_content_however_it_is_written(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.3.3.3/8") | {"IpProtocol": "6"}])
    assert ingress(ec2, group) == []


def test_in_the_default_vpc_a_revoke_that_matches_nothing_succeeds_and_says_what_it_left(ec2, group):
    reply = ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert reply["UnknownIpPermissions"][0]["IpRanges"] == [{"CidrIp": "10.0.0.0/8"}]


def test_in_another_vpc_a_revoke_that_matches_nothing_is_refused(layer):
    ec2 = layer.client(region="eu-central-1")
    vpc_id = ec2.create_vpc(CidrBlock="10.1.0.0/16")["Vpc"]["VpcId"]
    group = ec2.create_security_group(GroupName="web", Description="web", VpcId=vpc_id)["GroupId"]
    code = refusal(ec2.revoke_security_group_ingress, GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert code == "InvalidPermission.NotFound"


def test_a_rule_may_be_written_with_the_old_parameters(ec2, group):
    ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="tcp", FromPort=80, ToPort=80, CidrIp=ANYWHERE)
    assert ingress(ec2, group)[0]["IpRanges"] == [{"CidrIp": ANYWHERE}]


def test_the_description_of_a_rule_is_changed_by_its_id(ec2, group):
    reply = ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    rule_id = reply["SecurityGroupRules"][0]["SecurityGroupRuleId"]
    wanted = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "10.0.0.0/8", "Description": "office"}
    ec2.modify_security_group_rules(
        GroupId=group, SecurityGroupRules=[{"SecurityGroupRuleId": rule_id, "SecurityGroupRule": wanted}]
    )
    (shown,) = ec2.describe_security_group_rules(SecurityGroupRuleIds=[rule_id])["SecurityGroupRules"]
    assert shown["Description"] == "office"


# What the machine feels.


def test_a_running_machine_hears_of_a_new_rule_before_the_reply(cases, ec2, group, layer):
    instance_id = cases.running(SecurityGroupIds=[group])
    assert layer.machines.rules[instance_id] == ((), (Rule("-1", None, None, (ANYWHERE,)),))
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert layer.machines.rules[instance_id][0] == (Rule("tcp", 22, 22, ("10.0.0.0/8",)),)


def test_a_running_machine_hears_of_a_revoked_rule(cases, ec2, group, layer):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    instance_id = cases.running(SecurityGroupIds=[group])
    ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert layer.machines.rules[instance_id][0] == ()


def test_other_machines_are_not_told_what_does_not_concern_them(cases, ec2, group, layer):
    other = cases.running()
    told = layer.machines.calls.count(("set_rules", other))
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert layer.machines.calls.count(("set_rules", other)) == told


def test_a_group_as_peer_means_its_members_addresses(cases, ec2, group, layer):
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "UserIdGroupPairs": [{"GroupId": group}]}],
    )
    first = cases.running(SecurityGroupIds=[group])
    second = cases.running(SecurityGroupIds=[group])
    members = sorted(f"{cases.describe(name)['PrivateIpAddress']}/32" for name in (first, second))
    assert layer.machines.rules[first][0] == (Rule("tcp", 80, 80, tuple(members)),)


def test_a_member_that_is_terminated_is_no_peer_any_more(cases, ec2, group, layer):
    ec2.authorize_security_group_ingress(
        GroupId=group,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 80, "ToPort": 80, "UserIdGroupPairs": [{"GroupId": group}]}],
    )
    stays, goes = cases.running(SecurityGroupIds=[group]), cases.running(SecurityGroupIds=[group])
    ec2.terminate_instances(InstanceIds=[goes])
    cases.until(goes, "terminated")
    own = f"{cases.describe(stays)['PrivateIpAddress']}/32"
    eventually(lambda: layer.machines.rules[stays][0] == (Rule("tcp", 80, 80, (own,)),))


def test_another_set_of_groups_changes_instance_interface_and_door(cases, ec2, group, layer):
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    instance_id = cases.running()
    (interface,) = cases.describe(instance_id)["NetworkInterfaces"]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=interface["NetworkInterfaceId"], Groups=[group])
    shown = cases.describe(instance_id)
    assert [entry["GroupId"] for entry in shown["SecurityGroups"]] == [group]
    assert [entry["GroupId"] for entry in shown["NetworkInterfaces"][0]["Groups"]] == [group]
    assert layer.machines.rules[instance_id][0] == (Rule("tcp", 22, 22, ("10.0.0.0/8",)),)


def test_the_default_group_admits_only_its_own_members(cases, layer):
    instance_id = cases.running()
    own = f"{cases.describe(instance_id)['PrivateIpAddress']}/32"
    assert layer.machines.rules[instance_id][0] == (Rule("-1", None, None, (own,)),)


def test_a_machine_that_is_being_removed_is_told_no_rules(cases, ec2, group, layer):
    instance_id = cases.running(SecurityGroupIds=[group])
    layer.machines.held.add("destroy")
    ec2.terminate_instances(InstanceIds=[instance_id])
    eventually(lambda: ("destroy", instance_id) in layer.machines.calls)
    told = layer.machines.calls.count(("set_rules", instance_id))
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[tcp(22, "10.0.0.0/8")])
    assert layer.machines.calls.count(("set_rules", instance_id)) == told
    layer.machines.held.clear()
    cases.until(instance_id, "terminated")
