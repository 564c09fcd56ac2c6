"""The host key that user data holds is given up at first contact, on a real sshd."""

from __future__ import annotations

from cluster import specs
from cluster.place import Place

MACHINE = "site-web"
PAGE = "The page"


def accepted_keys(place: Place) -> list[set[str]]:
    """What the status told one after the other."""
    told = [set(each["status"]["hostKeys"]) for each in place.statuses(MACHINE) if each["status"].get("hostKeys")]
    return [each for each, before in zip(told, [set(), *told], strict=False) if each != before]


def shown_key(place: Place, address: str) -> str:
    """By the machine's sshd, to whoever asks."""
    found = place.lab.run(["ssh-keyscan", "-t", "ed25519", address]).stdout.split()
    return " ".join(found[1:3])


def test_the_host_key_of_user_data_is_accepted_no_more(place: Place) -> None:
    place.aws_secret()
    place.apply(specs.on_ec2(specs.page(PAGE)))
    place.wait_ready("nixdeployment/site")
    status = place.get("nixmachine", MACHINE)["status"]
    machine, address = status["instance"]["id"], status["addresses"]["ssh"]
    (accepted,) = status["hostKeys"]
    assert accepted == shown_key(place, address)
    first, *later = accepted_keys(place)
    assert len(first) == 1
    assert later[-1] == {accepted} != first
    assert set(map(frozenset, later[:-1])) <= {frozenset({accepted, *first})}

    # Nothing was told of a key that does not fit, and nothing reached the machine before.
    assert {reason for _, reason in place.told(MACHINE, "Reachable")} <= {
        "WaitingForSSH",
        "ConnectTimeout",
        "Succeeded",
    }
    (activation,) = place.activations(machine)
    made = place.on(machine, "stat", "--format=%Y", "/etc/ssh/ssh_host_ed25519_key")
    assert int(made) <= int(
        place.on(machine, "stat", "--format=%Y", f"/var/lib/nixops/activation/{activation}/request")
    )

    # It is the machine's own: another boot does not bring the first one back.
    place.kubectl("annotate", "nixmachine", MACHINE, "nixops.dev/reboot-requested-at=now")
    place.await_condition("nixmachine", MACHINE, {"Reachable": "True/Succeeded", "Ready": "True/Succeeded"})
    status = place.get("nixmachine", MACHINE)["status"]
    assert status["hostKeys"] == [accepted]
    assert shown_key(place, status["addresses"]["ssh"]) == accepted
