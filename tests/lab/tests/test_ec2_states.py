"""An instance's life: states follow the real machine, and each transition is allowed where EC2 allows it."""

import re

import pytest
from botocore.exceptions import ClientError

from nixops_lab.ec2.testing import eventually

pytest_plugins = ["nixops_lab.ec2.fixtures"]


def test_a_launched_instance_is_pending_until_its_machine_has_booted(cases, layer):
    layer.machines.held.add("start")
    instance_id = cases.launch()
    eventually(lambda: ("start", instance_id) in layer.machines.calls)
    assert cases.describe(instance_id)["State"] == {"Code": 0, "Name": "pending"}
    layer.machines.held.clear()
    eventually(lambda: cases.describe(instance_id)["State"] == {"Code": 16, "Name": "running"})
    assert layer.machines.state(instance_id) == "on"


def test_running_is_shown_only_after_the_set_delay(cases, layer):
    layer.turn(pending_seconds=3600)
    instance_id = cases.launch()
    eventually(lambda: layer.machines.state(instance_id) == "on")
    assert cases.state(instance_id) == "pending"
    layer.turn(pending_seconds=0)
    cases.until(instance_id, "running")


def test_stopping_lasts_until_the_machine_is_off(cases, ec2, layer):
    instance_id = cases.running()
    layer.machines.held.add("stop")
    (change,) = ec2.stop_instances(InstanceIds=[instance_id])["StoppingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("running", "stopping")
    eventually(lambda: ("stop", instance_id) in layer.machines.calls)
    assert cases.state(instance_id) == "stopping"
    layer.machines.held.clear()
    cases.until(instance_id, "stopped")
    assert layer.machines.state(instance_id) == "off"


def test_shutting_down_lasts_until_the_machine_is_gone(cases, ec2, layer):
    instance_id = cases.running()
    layer.machines.held.add("destroy")
    (change,) = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("running", "shutting-down")
    eventually(lambda: ("destroy", instance_id) in layer.machines.calls)
    assert cases.state(instance_id) == "shutting-down"
    layer.machines.held.clear()
    cases.until(instance_id, "terminated")
    assert layer.machines.state(instance_id) == "absent"


def test_a_terminated_instance_is_visible_for_an_hour_and_then_not_found(cases, ec2, layer):
    instance_id = cases.running()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    layer.clock.advance(3590)
    assert cases.state(instance_id) == "terminated"
    layer.clock.advance(20)
    with pytest.raises(ClientError, match=r"InvalidInstanceID\.NotFound"):
        cases.describe(instance_id)


def test_a_terminated_instance_has_lost_addresses_groups_and_devices(cases, ec2):
    instance_id = cases.running()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    shown = cases.describe(instance_id)
    assert (shown["SecurityGroups"], shown["NetworkInterfaces"], shown["BlockDeviceMappings"]) == ([], [], [])
    assert not {"PublicIpAddress", "PrivateIpAddress", "SubnetId", "VpcId"} & set(shown)


def test_a_stop_by_the_caller_gives_its_reason(cases, ec2):
    instance_id = cases.running()
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    shown = cases.describe(instance_id)
    assert shown["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert re.fullmatch(r"User initiated \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)", shown["StateTransitionReason"])


def test_a_poweroff_inside_stops_the_instance_with_its_own_reason(cases, layer):
    instance_id = cases.running()
    layer.run(layer.machines.power_off_inside(instance_id))
    cases.until(instance_id, "stopped")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_poweroff_inside_terminates_where_the_instance_says_so(cases, layer):
    instance_id = cases.running(InstanceInitiatedShutdownBehavior="terminate")
    layer.run(layer.machines.power_off_inside(instance_id))
    cases.until(instance_id, "terminated")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_poweroff_of_a_machine_that_is_no_instance_changes_nothing(cases, layer):
    instance_id = cases.running()
    layer.run(layer.machines.power_off_inside("given-host"))
    assert cases.state(instance_id) == "running"


def test_a_running_instance_gives_no_reason(cases):
    shown = cases.describe(cases.running())
    assert "StateReason" not in shown
    assert shown["StateTransitionReason"] == ""


def test_a_machine_that_cannot_be_made_is_a_failed_launch(cases, layer):
    layer.machines.broken.add("create")
    instance_id = cases.until(cases.launch(), "terminated")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Server.InternalError"


def test_start_brings_a_stopped_instance_back_with_a_later_launch_time(cases, ec2, layer):
    instance_id = cases.running()
    launched = cases.describe(instance_id)["LaunchTime"]
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    layer.clock.advance(60)
    (change,) = ec2.start_instances(InstanceIds=[instance_id])["StartingInstances"]
    assert (change["PreviousState"]["Name"], change["CurrentState"]["Name"]) == ("stopped", "pending")
    cases.until(instance_id, "running")
    assert cases.describe(instance_id)["LaunchTime"] > launched
    assert [name for operation, name in layer.machines.calls if operation == "create"] == [instance_id]


def test_start_of_a_running_instance_changes_nothing(cases, ec2, layer):
    instance_id = cases.running()
    (change,) = ec2.start_instances(InstanceIds=[instance_id])["StartingInstances"]
    assert change["PreviousState"] == change["CurrentState"] == {"Code": 16, "Name": "running"}
    assert layer.machines.calls.count(("start", instance_id)) == 1


def test_stop_of_a_stopped_instance_changes_nothing(cases, ec2, layer):
    instance_id = cases.running()
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    (change,) = ec2.stop_instances(InstanceIds=[instance_id])["StoppingInstances"]
    assert change["PreviousState"] == change["CurrentState"] == {"Code": 80, "Name": "stopped"}
    assert layer.machines.calls.count(("stop", instance_id)) == 1


def test_terminate_of_a_terminated_instance_changes_nothing(cases, ec2, layer):
    instance_id = cases.running()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    (change,) = ec2.terminate_instances(InstanceIds=[instance_id])["TerminatingInstances"]
    assert change["PreviousState"] == change["CurrentState"] == {"Code": 48, "Name": "terminated"}
    assert layer.machines.calls.count(("destroy", instance_id)) == 1


def test_terminate_works_while_the_machine_is_still_booting(cases, ec2, layer):
    layer.machines.held.add("create")
    instance_id = cases.launch()
    eventually(lambda: ("create", instance_id) in layer.machines.calls)
    ec2.terminate_instances(InstanceIds=[instance_id])
    layer.machines.held.clear()
    cases.until(instance_id, "terminated")
    assert layer.machines.state(instance_id) == "absent"
    assert ("start", instance_id) not in layer.machines.calls


@pytest.mark.parametrize("operation", ["start_instances", "stop_instances", "reboot_instances"])
def test_a_terminated_instance_cannot_be(operation, cases, ec2):
    instance_id = cases.running()
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        getattr(ec2, operation)(InstanceIds=[instance_id])


def test_a_stopping_instance_cannot_be_started(cases, ec2, layer):
    instance_id = cases.running()
    layer.machines.held.add("stop")
    ec2.stop_instances(InstanceIds=[instance_id])
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        ec2.start_instances(InstanceIds=[instance_id])
    layer.machines.held.clear()


def test_a_stopped_instance_cannot_be_rebooted(cases, ec2):
    instance_id = cases.running()
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        ec2.reboot_instances(InstanceIds=[instance_id])


def test_reboot_keeps_state_and_addresses(cases, ec2, layer):
    instance_id = cases.running()
    before = cases.describe(instance_id)
    ec2.reboot_instances(InstanceIds=[instance_id])
    eventually(lambda: ("reboot", instance_id) in layer.machines.calls)
    after = cases.describe(instance_id)
    assert after["State"]["Name"] == "running"
    assert (after["PublicIpAddress"], after["LaunchTime"]) == (before["PublicIpAddress"], before["LaunchTime"])


@pytest.mark.parametrize("operation", ["start_instances", "stop_instances", "terminate_instances"])
def test_one_unknown_id_refuses_the_whole_call_of(operation, cases, ec2, layer):
    instance_id = cases.running()
    calls = list(layer.machines.calls)
    with pytest.raises(ClientError, match=r"InvalidInstanceID\.NotFound"):
        getattr(ec2, operation)(InstanceIds=[instance_id, "i-0123456789abcdef0"])
    assert cases.state(instance_id) == "running"
    assert layer.machines.calls == calls


def test_a_protected_instance_is_not_terminated_until_protection_is_off(cases, ec2):
    instance_id = cases.running(DisableApiTermination=True)
    with pytest.raises(ClientError, match="OperationNotPermitted"):
        ec2.terminate_instances(InstanceIds=[instance_id])
    assert cases.state(instance_id) == "running"
    ec2.modify_instance_attribute(InstanceId=instance_id, DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")


def test_a_protected_instance_blocks_its_own_zone_only(cases, ec2):
    protected = cases.running(DisableApiTermination=True, Placement={"AvailabilityZone": "us-west-2a"})
    beside = cases.running(Placement={"AvailabilityZone": "us-west-2a"})
    elsewhere = cases.running(Placement={"AvailabilityZone": "us-west-2b"})
    with pytest.raises(ClientError, match="OperationNotPermitted"):
        ec2.terminate_instances(InstanceIds=[elsewhere, protected, beside])
    cases.until(elsewhere, "terminated")
    assert (cases.state(protected), cases.state(beside)) == ("running", "running")


def test_monitoring_is_switched_on_and_off_and_told_in_the_description(cases, ec2):
    instance_id = cases.running()
    assert cases.describe(instance_id)["Monitoring"] == {"State": "disabled"}

    def told(call):
        (entry,) = call(InstanceIds=[instance_id])["InstanceMonitorings"]
        return entry["Monitoring"]["State"], cases.describe(instance_id)["Monitoring"]["State"]

    assert told(ec2.monitor_instances) == ("pending", "enabled")
    assert told(ec2.unmonitor_instances) == ("disabling", "disabled")


def test_an_instance_may_be_monitored_from_its_launch(cases):
    assert cases.describe(cases.launch(Monitoring={"Enabled": True}))["Monitoring"] == {"State": "enabled"}


def test_an_unknown_or_terminated_instance_is_not_monitored(cases, ec2):
    instance_id = cases.running()
    with pytest.raises(ClientError, match=r"InvalidInstanceID\.NotFound"):
        ec2.monitor_instances(InstanceIds=[instance_id, "i-0123456789abcdef0"])
    assert cases.describe(instance_id)["Monitoring"] == {"State": "disabled"}
    ec2.terminate_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "terminated")
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        ec2.unmonitor_instances(InstanceIds=[instance_id])


def test_the_status_operation_shows_running_instances_only_unless_asked(cases, ec2):
    running, stopped = cases.running(), cases.running()
    ec2.stop_instances(InstanceIds=[stopped])
    cases.until(stopped, "stopped")
    shown = [entry["InstanceId"] for entry in ec2.describe_instance_status()["InstanceStatuses"]]
    every = [
        entry["InstanceId"] for entry in ec2.describe_instance_status(IncludeAllInstances=True)["InstanceStatuses"]
    ]
    assert shown == [running]
    assert sorted(every) == sorted([running, stopped])


def test_new_objects_are_invisible_for_the_set_time(cases, ec2, layer):
    layer.turn(visibility_seconds=60)
    instance_id = cases.launch()
    with pytest.raises(ClientError, match=r"InvalidInstanceID\.NotFound"):
        cases.describe(instance_id)
    with pytest.raises(ClientError, match=r"InvalidInstanceID\.NotFound"):
        ec2.terminate_instances(InstanceIds=[instance_id])
    assert ec2.describe_instances()["Reservations"] == []
    layer.clock.advance(61)
    assert cases.describe(instance_id)["InstanceId"] == instance_id


def test_a_launch_that_fails_while_it_is_being_terminated_keeps_the_callers_reason(cases, ec2, layer):
    layer.machines.held.add("create")
    layer.machines.broken.add("create")
    instance_id = cases.launch()
    eventually(lambda: ("create", instance_id) in layer.machines.calls)
    ec2.terminate_instances(InstanceIds=[instance_id])
    layer.machines.held.clear()
    cases.until(instance_id, "terminated")
    assert cases.describe(instance_id)["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert layer.machines.calls.count(("destroy", instance_id)) == 1


def test_a_machine_that_does_not_boot_again_is_a_stopped_instance(cases, ec2, layer):
    instance_id = cases.running()
    ec2.stop_instances(InstanceIds=[instance_id])
    cases.until(instance_id, "stopped")
    layer.machines.broken.add("start")
    ec2.start_instances(InstanceIds=[instance_id])
    eventually(lambda: cases.describe(instance_id).get("StateReason", {}).get("Code") == "Server.InternalError")
    assert cases.state(instance_id) == "stopped"
    assert layer.machines.state(instance_id) == "off"
