"""Files with secrets: which of them differ, and what that means for the machine and for its next system."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from typing import Any

import pytest

from nixops_operator.api.machine_spec import MachineKey
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.host import ActivationState, DeliveredKey, FoundFile, HostOwner, Mode
from nixops_operator.jobs import Failed, Running
from nixops_operator.machine import steps
from nixops_operator.machine.keys import DeliverKeys, ObservedKeys, WantedKey
from nixops_operator.verdict import Outcome
from unit.builders import (
    ADDRESS,
    BOOT,
    COPIED,
    EVALUATE,
    NEW,
    OLD,
    activation,
    host,
    host_machine,
    on_host,
    planned,
    ran,
    ready,
    seen,
    silent,
    status_of,
    trio_of,
)

SERVED = activation(result="Succeeded") | ran() | ready()
REPORT = {"activation": {"driftPolicy": "Report"}}
PATH = "/run/keys/token"
KNOWN = DeliveredKey(
    path=PATH,
    mode=0o640,
    user="web",
    group="keys",
    digest="digest",
    boot_id=BOOT,
    owes_restarts=False,
    was_unowned=False,
    has_owner=True,
    file=FoundFile(stat.S_IFREG | 0o640, "web", "keys", "sha256"),
)
GONE = Blocked(Reason.SECRET_NOT_FOUND, "Secret tokens, for the key token, does not exist; create it")


def declared(name: str = "token", **more: Any) -> dict[str, Any]:
    """One of spec.keys."""
    return {
        "name": name,
        "secretRef": {"name": "tokens", "key": "api"},
        "user": "web",
        "group": "keys",
        "permissions": "0640",
        **more,
    }


def wanted(name: str = "token", digest: str = "digest", sha256: str = "sha256", **more: Any) -> WantedKey:
    key = declared(name, **more)
    return WantedKey(MachineKey.model_validate_json(json.dumps(key)), digest, sha256)


def machine(*keys: dict[str, Any], status: dict[str, Any] = SERVED, **spec: Any) -> Any:
    return host_machine(status, keys=list(keys or (declared(),)), **spec)


def on(*delivered: DeliveredKey, current: str = NEW, **more: Any) -> Any:
    """A machine that was given these keys."""
    return host(current, current, keys=delivered, **more)


def deliveries(desired: Any, observed: Any) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(names, paths that are to go) of each call to the machine."""
    taken = [step for step in planned(desired, observed).steps if isinstance(step, DeliverKeys)]
    return [(tuple(key.name for key in step.keys), step.gone) for step in taken]


TOKEN = ObservedKeys((wanted(),))


@pytest.mark.parametrize(
    ("found", "outcome", "reason"),
    [
        pytest.param((), Outcome.WORKING, Reason.DELIVERING, id="never given"),
        pytest.param(
            (replace(KNOWN, digest="", file=None),), Outcome.WORKING, Reason.DELIVERING, id="its first delivery was cut"
        ),
        pytest.param(
            (replace(KNOWN, boot_id="boot-0", file=None),),
            Outcome.WORKING,
            Reason.DELIVERING,
            id="the machine has booted",
        ),
        pytest.param(
            (replace(KNOWN, digest="of yesterday"),), Outcome.REPAIRING, Reason.DELIVERING, id="the Secret has changed"
        ),
        pytest.param((replace(KNOWN, mode=0o600),), Outcome.REPAIRING, Reason.DELIVERING, id="other permissions"),
        pytest.param((replace(KNOWN, user="root"),), Outcome.REPAIRING, Reason.DELIVERING, id="another owner"),
        pytest.param(
            (replace(KNOWN, owes_restarts=True),), Outcome.REPAIRING, Reason.DELIVERING, id="cut before the restarts"
        ),
        pytest.param(
            (replace(KNOWN, was_unowned=True, file=replace(KNOWN.file, user="root", group="root")),),
            Outcome.REPAIRING,
            Reason.DELIVERING,
            id="its owner has come since then",
        ),
        pytest.param((replace(KNOWN, file=None),), Outcome.REPAIRING, Reason.KEY_DRIFT, id="removed by hand"),
        pytest.param(
            (replace(KNOWN, file=replace(KNOWN.file, sha256="by hand")),),
            Outcome.REPAIRING,
            Reason.KEY_DRIFT,
            id="written by hand",
        ),
        pytest.param(
            (replace(KNOWN, file=replace(KNOWN.file, mode=stat.S_IFREG | 0o644)),),
            Outcome.REPAIRING,
            Reason.KEY_DRIFT,
            id="made readable by hand",
        ),
        pytest.param(
            (replace(KNOWN, file=replace(KNOWN.file, mode=stat.S_IFLNK | 0o640)),),
            Outcome.REPAIRING,
            Reason.KEY_DRIFT,
            id="a link in its place",
        ),
        pytest.param(
            (replace(KNOWN, file=replace(KNOWN.file, user="root")),),
            Outcome.REPAIRING,
            Reason.KEY_DRIFT,
            id="given to another one by hand",
        ),
    ],
)
def test_a_key_that_differs_is_delivered(found: tuple[DeliveredKey, ...], outcome: Outcome, reason: Reason) -> None:
    observed = seen(host=on(*found), keys=TOKEN)
    assert deliveries(machine(), observed) == [(("token",), ())]
    verdict = planned(machine(), observed).verdict
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(KNOWN, id="as it was given"),
        pytest.param(replace(KNOWN, boot_id="boot-0"), id="on a disk that outlived a boot"),
        pytest.param(replace(KNOWN, was_unowned=True), id="the activation has given it to its owner"),
    ],
)
def test_a_key_that_is_there_as_declared_is_left_alone(found: DeliveredKey) -> None:
    observed = seen(host=on(found), keys=TOKEN)
    assert planned(machine(), observed).steps == ()
    assert trio_of(machine(), observed)["KeysPresent"] == "True/Succeeded"
    assert trio_of(machine(), observed)["Ready"] == "True/Succeeded"


def test_only_what_differs_is_sent() -> None:
    keys = ObservedKeys((wanted(), wanted("other"), wanted("third")))
    there = [replace(KNOWN, path="/run/keys/other"), KNOWN]
    desired = machine(declared(), declared("other"), declared("third"))
    assert deliveries(desired, seen(host=on(*there), keys=keys)) == [(("third",), ())]


def test_nothing_differs_on_a_machine_that_cannot_be_looked_at() -> None:
    observed = seen(host=silent(Retry(Reason.CONNECT_TIMEOUT, "no answer")), keys=TOKEN)
    assert deliveries(machine(), observed) == []
    assert trio_of(machine(), observed)["KeysPresent"] == "Unknown/WaitingForSSH"


def test_a_suspended_machine_gets_nothing() -> None:
    desired = machine(suspend=True)
    assert deliveries(desired, seen(host=on(), keys=TOKEN)) == []


def test_what_somebody_changed_is_left_and_told_under_report() -> None:
    observed = seen(host=on(replace(KNOWN, file=None)), keys=TOKEN)
    desired = machine(**REPORT)
    assert deliveries(desired, observed) == []
    told = trio_of(desired, observed)
    assert (told["Ready"], told["KeysPresent"], told["UpToDate"]) == (
        "True/Succeeded",
        "True/Succeeded",
        "False/KeyDrift",
    )


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(replace(KNOWN, boot_id="boot-0", file=None), id="a boot"),
        pytest.param(replace(KNOWN, digest="of yesterday"), id="a rotation"),
        pytest.param(replace(KNOWN, digest="of yesterday", file=None), id="a rotation of one that was removed"),
    ],
)
def test_what_nobody_changed_by_hand_is_put_right_under_report(found: DeliveredKey) -> None:
    assert deliveries(machine(**REPORT), seen(host=on(found), keys=TOKEN)) == [(("token",), ())]


# --- a Secret that is not there -----------------------------------------------------------------------------------


def test_a_missing_secret_is_told_and_what_was_delivered_stays() -> None:
    observed = seen(host=on(KNOWN), keys=ObservedKeys(errors=(("token", GONE),)))
    assert planned(machine(), observed).steps == ()
    told = trio_of(machine(), observed)
    assert told["KeysPresent"] == told["Ready"] == "False/SecretNotFound"
    assert told["Stalled"] == "True/SecretNotFound"
    assert told["ConfigurationActive"] == "True/Succeeded"


def test_a_missing_secret_keeps_no_other_key_back() -> None:
    desired = machine(declared(), declared("other"))
    keys = ObservedKeys((wanted("other"),), (("token", GONE),))
    assert deliveries(desired, seen(host=on(), keys=keys)) == [(("other",), ())]


# --- and the next system --------------------------------------------------------------------------------------------


def activates(desired: Any, observed: Any) -> bool:
    return any(isinstance(step, steps.RecordActivation) for step in planned(desired, observed).steps)


def test_no_system_is_activated_before_its_keys_are_there() -> None:
    new = machine(status={})
    assert not activates(new, seen(host=on(current=OLD), keys=TOKEN))
    assert not activates(new, seen(host=on(replace(KNOWN, digest="old"), current=OLD), keys=TOKEN))
    assert not activates(new, seen(host=on(KNOWN, current=OLD), keys=ObservedKeys(errors=(("token", GONE),))))
    assert activates(new, seen(host=on(KNOWN, current=OLD), keys=TOKEN))


def test_a_key_changed_by_hand_that_is_left_keeps_no_system_back() -> None:
    observed = seen(host=on(replace(KNOWN, file=None), current=OLD), keys=TOKEN)
    assert activates(machine(status={}, **REPORT), observed)


def test_a_system_that_makes_the_owner_is_activated_before_he_is_there() -> None:
    waiting = replace(KNOWN, was_unowned=True, has_owner=False, file=replace(KNOWN.file, user="root", group="root"))
    assert activates(machine(status={}), seen(host=on(waiting, current=OLD), keys=TOKEN))


def test_a_machine_that_was_restarted_gets_its_keys_before_it_is_confirmed() -> None:
    """They went with its memory, and its health may depend on them."""
    waiting = on_host(ActivationState.REBOOTING, mode=Mode.RESTART, boot="boot-0")
    still_up = on_host(ActivationState.REBOOTING, mode=Mode.RESTART)

    assert deliveries(machine(), seen(host=on(activation=waiting), keys=TOKEN)) == [(("token",), ())]
    assert deliveries(machine(), seen(host=on(activation=still_up), keys=TOKEN)) == []


def test_an_owner_whom_the_declared_system_does_not_make_is_told() -> None:
    waiting = replace(KNOWN, was_unowned=True, has_owner=False, file=replace(KNOWN.file, user="root", group="root"))
    observed = seen(host=on(waiting), keys=TOKEN)
    assert trio_of(machine(), observed)["KeysPresent"] == "False/DeliveryFailed"
    message = planned(machine(), observed).verdict.message
    assert message.startswith(f"the key token is to belong to web:keys, and {ADDRESS} does not have both")


LATE = {"upload": "AfterActivation"}


def test_a_key_for_afterwards_comes_with_the_declared_system_and_stays() -> None:
    desired, keys = machine(declared(**LATE)), ObservedKeys((wanted(**LATE),))
    assert deliveries(desired, seen(host=on(current=OLD), keys=keys)) == []
    assert activates(machine(declared(**LATE), status={}), seen(host=on(current=OLD), keys=keys))
    assert trio_of(desired, seen(host=on(current=OLD), keys=keys))["KeysPresent"] == "False/Delivering"
    assert deliveries(desired, seen(host=on(), keys=keys)) == [(("token",), ())]
    rotated = seen(host=on(replace(KNOWN, digest="old"), current=OLD), keys=keys)
    rebooted = seen(host=on(replace(KNOWN, boot_id="boot-0", file=None), current=OLD), keys=keys)
    assert deliveries(desired, rotated) == deliveries(desired, rebooted) == [(("token",), ())]


def test_keys_are_delivered_whatever_becomes_of_the_configuration() -> None:
    failed = {EVALUATE: Failed(Blocked(Reason.EVALUATION_FAILED, "syntax error"))}
    found = replace(KNOWN, boot_id="boot-0", file=None)
    assert deliveries(machine(), seen(host=on(found), keys=TOKEN, jobs=failed)) == [(("token",), ())]


def test_nothing_is_delivered_in_the_middle_of_an_activation() -> None:
    running = on_host(ActivationState.SWITCHING, unit=True)
    assert deliveries(machine(), seen(host=on(activation=running, current=OLD), keys=TOKEN)) == []


def test_what_left_the_spec_goes_under_the_system_that_was_declared_without_it() -> None:
    desired = host_machine(SERVED)
    assert deliveries(desired, seen(host=on(KNOWN, current=OLD))) == []
    assert deliveries(desired, seen(host=on(KNOWN))) == [((), (PATH,))]


def test_a_key_at_another_path_comes_before_the_old_one_goes() -> None:
    moved = {"path": "/etc/token"}
    desired, keys = machine(declared(**moved)), ObservedKeys((wanted(**moved),))
    assert deliveries(desired, seen(host=on(KNOWN, current=OLD), keys=keys)) == [(("token",), ())]
    there = replace(KNOWN, path="/etc/token")
    assert deliveries(desired, seen(host=on(there, KNOWN), keys=keys)) == [((), (PATH,))]


# --- tries ----------------------------------------------------------------------------------------------------------


def job_of(desired: Any, observed: Any) -> str:
    (step,) = (step for step in planned(desired, observed).steps if isinstance(step, DeliverKeys))
    return step.job


def test_a_delivery_that_failed_is_told_and_tried_again_in_its_time() -> None:
    error = Retry(Reason.DELIVERY_FAILED, f"{ADDRESS}: keys: no space left on device")
    missing = seen(host=on(), keys=TOKEN)
    job = job_of(machine(), missing)
    failed = replace(missing, jobs={**COPIED, job: Failed(error)})
    assert deliveries(machine(), failed) == []
    assert trio_of(machine(), failed)["KeysPresent"] == "False/DeliveryFailed"
    due = replace(missing, jobs={**COPIED, job: Failed(error, is_due=True)})
    assert deliveries(machine(), due) == [(("token",), ())]
    again = replace(missing, jobs={**COPIED, job: Running(last_error=error)})
    assert trio_of(machine(), again)["KeysPresent"] == "False/DeliveryFailed"


def test_a_rotation_that_fails_for_now_leaves_the_machine_ready() -> None:
    error = Retry(Reason.CONNECT_TIMEOUT, "cut")
    outdated = seen(host=on(replace(KNOWN, digest="old")), keys=TOKEN)
    failed = replace(outdated, jobs={**COPIED, job_of(machine(), outdated): Failed(error)})
    told = trio_of(machine(), failed)
    assert (told["Ready"], told["KeysPresent"]) == ("True/Delivering", "False/Delivering")


def test_another_content_or_place_waits_for_nobody_s_time() -> None:
    observed = seen(host=on(), keys=TOKEN)
    other = replace(observed, keys=ObservedKeys((wanted(digest="another"),)))
    moved = replace(observed, keys=ObservedKeys((wanted(path="/etc/token"),)))
    assert len({job_of(machine(), observed), job_of(machine(), other), job_of(machine(), moved)}) == 3


# --- the status -----------------------------------------------------------------------------------------------------


def test_the_status_tells_what_was_delivered_and_in_which_boot() -> None:
    observed = seen(host=on(KNOWN, replace(KNOWN, path="/run/keys/gone")), keys=TOKEN)
    assert status_of(machine(), observed)["keys"] == [{"name": "token", "digest": "digest", "deliveredBoot": BOOT}]
    assert "keys" not in status_of(machine(), seen(host=silent(), keys=TOKEN))
    assert status_of(host_machine(SERVED), seen(host=on()))["keys"] is None


def test_keys_of_another_owner_of_the_host_are_not_taken_for_ours() -> None:
    theirs = host(NEW, NEW, keys=(replace(KNOWN, digest="theirs"),), owner=HostOwner("cluster", "other", "shop/other"))
    observed = seen(host=replace(theirs, ours=HostOwner("cluster", "ours", "default/web")), keys=TOKEN)
    assert deliveries(machine(), observed) == []
    assert trio_of(machine(), observed)["KeysPresent"] == "False/Delivering"


def test_a_machine_without_keys_says_nothing_of_them() -> None:
    assert "KeysPresent" not in trio_of(host_machine(SERVED), seen(host=on()))


def test_nothing_that_could_be_guessed_with_is_in_a_step_s_words() -> None:
    observed = seen(host=on(), keys=ObservedKeys((wanted(sha256="guessable"),)))
    (step,) = (each for each in planned(machine(), observed).steps if isinstance(each, DeliverKeys))
    assert "guessable" not in repr(step)
