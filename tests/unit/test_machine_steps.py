"""A machine's steps, carried out beside a fake API server and a fake EC2: what is destroyed needs fresh proof, and what
EC2 refuses says something of its own call alone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from nixops_operator import names
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import VolumeStatus
from nixops_operator.errors import Blocked, Conflict, OperatorError, OutcomeUnknown
from nixops_operator.facts.cloud import InstanceAttribute, InstanceState, LaunchRequest
from nixops_operator.machine import steps
from nixops_operator.machine.desired import Desired
from unit.builders import launch
from unit.fake_time import run
from unit.machine_bench import WEB, Bench

DENIED = Blocked(Reason.ACCESS_DENIED, "RunInstances: UnauthorizedOperation").as_refusal()
UNKNOWN = OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, "RunInstances: no usable reply")


def living(test: Coroutine[Any, Any, None]) -> None:
    run(test)


# --- what ends an instance ------------------------------------------------------------------------------------------


async def leaving(bench: Bench) -> str:
    """A machine in deletion, with its instance."""
    bench.machine()
    instance = await bench.instance()
    bench.tell(launch(instance=instance))
    bench.kube.delete(WEB)
    await bench.seen()
    return instance


def retain(bench: Bench, instance: str) -> None:
    bench.kube.edit(WEB, lambda body: body["spec"].update(deletionPolicy="Retain"))


def later_policy(bench: Bench, instance: str) -> None:
    bench.kube.edit(WEB, lambda body: body["spec"].update(deletionPolicy="Snapshot"))


def take_tags_off(bench: Bench, instance: str) -> None:
    bench.ec2.instances[instance].tags.pop(names.UID_TAG)  # type: ignore[attr-defined]  # a dict in the fake


def tag_as_retained(bench: Bench, instance: str) -> None:
    bench.ec2.instances[instance].tags[names.RETAINED_TAG] = "true"  # type: ignore[index]


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(retain, id="the policy says Retain"),
        pytest.param(later_policy, id="the policy is a word of a later release"),
        pytest.param(take_tags_off, id="our tags are off"),
        pytest.param(tag_as_retained, id="it was let go of"),
    ],
)
def test_nothing_is_terminated_on_an_old_word(meanwhile: Callable[[Bench, str], None]):
    """The plan was made a moment before; the cache, and what EC2 showed, are of then."""

    async def test() -> None:
        bench = Bench()
        instance = await leaving(bench)
        known, body = bench.read(), bench.body()
        meanwhile(bench, instance)
        with pytest.raises(Conflict):
            await bench.take(steps.TerminateInstance(instance), known, body)
        assert bench.ec2.effects.of("ec2.terminate_instance") == []

    living(test())


def test_what_is_still_to_go_is_terminated():
    async def test() -> None:
        bench = Bench()
        instance = await leaving(bench)
        await bench.take(steps.TerminateInstance(instance))
        assert not bench.ec2.instances[instance].state.is_live

    living(test())


def declare(bench: Bench, **ec2: Any) -> None:
    bench.kube.edit(WEB, lambda body: body["spec"]["target"]["ec2"].update(ec2))


@pytest.mark.parametrize(
    ("field", "attribute"),
    [
        ("terminationProtection", InstanceAttribute.TERMINATION_PROTECTION),
        ("stopProtection", InstanceAttribute.STOP_PROTECTION),
    ],
)
def test_a_declared_protection_holds_until_the_spec_says_that_it_is_off(field: str, attribute: InstanceAttribute):
    async def test() -> None:
        bench = Bench()
        instance = await leaving(bench)
        bench.ec2.attributes[instance][attribute] = True
        declare(bench, **{field: True})
        with pytest.raises(Blocked, match=f"spec.target.ec2.{field}") as refused:
            await bench.take(steps.TerminateInstance(instance))
        assert refused.value.reason is Reason.CHANGE_FORBIDDEN
        assert bench.ec2.effects.of("ec2.terminate_instance") == []

        declare(bench, **{field: False})
        await bench.take(steps.TerminateInstance(instance))
        assert not bench.ec2.instances[instance].state.is_live

    living(test())


def test_a_protection_that_was_declared_once_goes_with_its_line():
    async def test() -> None:
        bench = Bench()
        instance = await leaving(bench)
        bench.ec2.attributes[instance][InstanceAttribute.TERMINATION_PROTECTION] = True
        bench.tell({"appliedFields": ["terminationProtection"]})
        await bench.take(steps.TerminateInstance(instance))
        assert not bench.ec2.instances[instance].state.is_live

    living(test())


def test_a_protection_that_somebody_else_has_set_stays():
    async def test() -> None:
        bench = Bench()
        instance = await leaving(bench)
        bench.ec2.attributes[instance][InstanceAttribute.TERMINATION_PROTECTION] = True
        with pytest.raises(Blocked, match="OperationNotPermitted") as refused:
            await bench.take(steps.TerminateInstance(instance))
        assert refused.value.reason is Reason.CHANGE_FORBIDDEN
        assert bench.ec2.effects.of("ec2.set_attribute") == []

    living(test())


def test_what_a_launch_asked_for_is_written_down_to_be_undone():
    async def test() -> None:
        bench = Bench()
        ec2 = {"instanceType": "t3.small", "terminationProtection": True, "userDataExtra": "# role: web\n"}
        bench.machine(target={"ec2": ec2})
        body = await bench.take(steps.RecordLaunch(1, bench.ec2.account, (await bench.seen()).declared))
        assert body["status"]["appliedFields"] == ["terminationProtection"]
        (text,) = [one.data["request"] for (_, name), one in bench.kube.secrets.items() if "launch" in name]
        request = LaunchRequest.from_json(text.decode())
        assert request.termination_protection is True
        host_key, extra = request.user_data.splitlines()[:2], request.user_data.splitlines()[2:]
        assert [line.partition(":")[0] for line in host_key] == ["SSH_HOST_ED25519_KEY_PUB", "SSH_HOST_ED25519_KEY"]
        assert extra == ["# role: web"]

    living(test())


# --- what a refused launch proves -------------------------------------------------------------------------------------


async def launching(bench: Bench) -> None:
    """A machine whose first launch is recorded."""
    bench.machine()
    declared = (await bench.seen()).declared
    await bench.take(steps.RecordLaunch(1, bench.ec2.account, declared))


async def ask(bench: Bench, error: OperatorError | None = None) -> None:
    """One call of the launch as it is recorded, with this answer."""
    known = bench.read()
    assert isinstance(known, Desired)
    assert known.launch is not None
    if error is None:
        await bench.take(steps.Launch(known.launch))
        return
    bench.ec2.effects.next_error["ec2.run_instances"] = error
    with pytest.raises(type(error)):
        await bench.take(steps.Launch(known.launch))


def told(bench: Bench) -> tuple[bool, bool]:
    """Whether the attempt is over, and whether it is doubted."""
    recorded = bench.body()["status"]["launch"]
    return recorded.get("refusedGeneration") is not None, recorded.get("doubtedAt") is not None


def test_a_refusal_of_the_only_call_ends_the_attempt():
    async def test() -> None:
        bench = Bench()
        await launching(bench)
        await ask(bench, DENIED)
        assert told(bench) == (True, False)

    living(test())


def test_a_refusal_after_a_lost_answer_only_raises_a_doubt():
    """The permission was withdrawn, and the first call had made an instance."""

    async def test() -> None:
        bench = Bench()
        await launching(bench)
        await ask(bench, UNKNOWN)
        await ask(bench, DENIED)
        assert told(bench) == (False, True)

    living(test())


def test_a_refusal_to_a_process_that_did_not_make_the_first_call_only_raises_a_doubt():
    async def test() -> None:
        bench = Bench()
        await launching(bench)
        bench.world.answered_tokens.clear()  # another process, which does not know what the first one heard
        await ask(bench, DENIED)
        assert told(bench) == (False, True)

    living(test())


def test_an_answer_is_written_down_and_ends_every_doubt():
    async def test() -> None:
        bench = Bench()
        await launching(bench)
        await ask(bench, UNKNOWN)
        await ask(bench)
        (instance,) = bench.ec2.instances
        assert bench.body()["status"]["launch"]["instanceId"] == instance
        assert told(bench) == (False, False)

    living(test())


def test_a_refused_attempt_is_asked_for_again_with_the_same_token_and_secret():
    """Every refused attempt left a Secret with a private key: 144 a day under a quota."""

    async def test() -> None:
        bench = Bench()
        await launching(bench)
        for _ in range(3):
            await ask(bench, DENIED)
            await bench.take(steps.RecordCall(1))
        await ask(bench)
        assert len({call.arguments["token"] for call in bench.ec2.effects.of("ec2.run_instances")}) == 1
        assert [name for _, name in bench.kube.secrets if "launch" in name] == [names.launch_secret(WEB.name, 1)]

    living(test())


# --- the key that an instance was launched with -----------------------------------------------------------------------


def test_the_client_key_of_the_launch_is_kept_with_the_pinned_host_key():
    async def test() -> None:
        bench = Bench()
        await launching(bench)
        await ask(bench)
        (instance,) = bench.ec2.instances
        bench.ec2.set_state(instance, InstanceState.RUNNING)
        await bench.take(steps.PinHostKey(instance, 1, is_pinned=False))
        found = (await bench.seen()).pins
        assert (found.instance_id, found.client_key, found.launches_left) == (instance, bench.client.text, False)
        assert names.launch_secret(WEB.name, 1) not in {name for _, name in bench.kube.secrets}

    living(test())


@pytest.mark.parametrize("is_told", [True, False], ids=["told by the status", "told by nobody"])
def test_a_pin_whose_launch_is_gone_is_restored_from_the_status(is_told: bool):
    """People were told to delete the instance though the status still had its key."""

    async def test() -> None:
        bench = Bench()
        bench.machine()
        instance = await bench.instance()
        bench.tell(launch(instance=instance) | {"hostKeys": ["ssh-ed25519 AAAA"]})
        if is_told:
            bench.tell({"instance": {"id": instance}})
        await bench.seen()
        pin = steps.PinHostKey(instance, 1, is_pinned=False)
        if is_told:
            await bench.take(pin)
            assert (await bench.seen()).pins.keys == ("ssh-ed25519 AAAA",)
        else:
            with pytest.raises(Blocked, match="its launch Secret is gone"):
                await bench.take(pin)

    living(test())


# --- what makes a volume ------------------------------------------------------------------------------------------

CREATE = "ec2.create_volume"
ASKED = VolumeStatus(
    name="data", zone="us-west-2a", settings='{"size_gib": 10, "type": "gp3"}', deletion_policy="Retain"
)


async def asking_for_volume(bench: Bench) -> None:
    """A machine whose volume is written down, as the first one of its entry."""
    bench.machine()
    await bench.instance()
    await bench.seen()
    await bench.take(steps.RecordVolume(ASKED))


async def ask_for_volume(bench: Bench, error: OperatorError) -> None:
    bench.ec2.effects.next_error[CREATE] = error
    (record,) = bench.read().volumes
    with pytest.raises(OperatorError):
        await bench.take(steps.CreateVolume(record))


def may_exist(bench: Bench) -> bool:
    """Whether the status says that a call may have made it."""
    (record,) = bench.read().volumes
    return record.called_at is not None


def test_a_refused_volume_is_none_that_may_exist_if_every_call_was_answered():
    async def test() -> None:
        bench = Bench()
        await asking_for_volume(bench)
        assert may_exist(bench)
        await ask_for_volume(bench, DENIED)
        assert not may_exist(bench)
        (record,) = bench.read().volumes
        await bench.take(steps.RecordVolume(record))
        await ask_for_volume(bench, DENIED)
        assert not may_exist(bench)

    living(test())


@pytest.mark.parametrize("is_another_process", [True, False])
def test_a_refused_volume_may_exist_where_an_earlier_call_was_not_answered(*, is_another_process: bool):
    async def test() -> None:
        bench = Bench()
        await asking_for_volume(bench)
        if is_another_process:
            bench.world.answered_tokens.clear()
        else:
            await ask_for_volume(bench, UNKNOWN)
        await ask_for_volume(bench, DENIED)
        assert may_exist(bench)
        (record,) = bench.read().volumes
        await bench.take(steps.RecordVolume(record))  # noted anew a minute later
        await ask_for_volume(bench, DENIED)
        assert may_exist(bench)

    living(test())
