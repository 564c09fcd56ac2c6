"""Keys: from a Secret to the machine, and after every change of either."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition, is_ready, standing
from cluster.polling import eventually

HOST = "host"
TOKEN = "/run/keys/token"
LATE = "/var/lib/site/late"
USES_THE_TOKEN = """
  users.users.site = { isSystemUser = true; group = "site"; extraGroups = [ "keys" ]; };
  users.groups.site = { };
  systemd.services.reader = {
    description = "Reads the token as its user, when it starts";
    requires = [ "token-key.service" ];
    after = [ "token-key.service" ];
    wantedBy = [ "multi-user.target" ];
    serviceConfig.User = "site";
    script = "cat /run/keys/token >/dev/null && exec sleep infinity";
  };
  systemd.services.bystander = {
    description = "Needs the token, and not to be restarted for it";
    requires = [ "token-key.service" ];
    after = [ "token-key.service" ];
    wantedBy = [ "multi-user.target" ];
    script = "exec sleep infinity";
  };
"""


def key(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "secretRef": {"name": "tokens", "key": name}, **more}


KEYS = [
    key("token", user="site", group="site", permissions="0440", restartUnits=["reader.service"]),
    key("late", directory="/var/lib/site", upload="AfterActivation"),
]


def content(place: Place, path: str) -> str | None:
    """None: there is no such file."""
    done = place.lab.machine_exec(GIVEN_HOST, ["cat", path], check=False)
    return done.stdout if done.returncode == 0 else None


def is_active(place: Place, unit: str) -> bool:
    return place.lab.machine_exec(GIVEN_HOST, ["systemctl", "is-active", unit], check=False).stdout == "active\n"


def starts(place: Place, *units: str) -> list[str]:
    """What systemd calls their present lives: another one after each start."""
    return [place.on(GIVEN_HOST, "systemctl", "show", "--property=InvocationID", "--value", unit) for unit in units]


def await_content(place: Place, path: str, wanted: str | None) -> None:
    def last() -> str:
        return f"{content(place, path)!r}; {standing(place.get('nixmachine', HOST))}"

    eventually(lambda: content(place, path) == wanted, f"{path} holds {wanted!r}", last=last)


@pytest.fixture(scope="module")
def host(shared_place: Place) -> Place:
    """The given host, with both keys."""
    shared_place.ssh_secret()
    shared_place.secret("tokens", {"token": "first", "late": "ümläut\n"})
    shared_place.apply(specs.on_host(shared_place.lab, specs.page("Keys", USES_THE_TOKEN), keys=KEYS))
    shared_place.wait_ready(f"nixmachine/{HOST}")
    return shared_place


def test_keys_are_on_the_machine_before_their_readers_start(host: Place) -> None:
    assert (content(host, TOKEN), content(host, LATE)) == ("first", "ümläut\n")
    assert host.on(GIVEN_HOST, "stat", "-c", "%a %U %G", TOKEN) == "440 site site"
    assert host.on(GIVEN_HOST, "stat", "-c", "%a %U %G", LATE) == "600 root root"
    assert all(is_active(host, unit) for unit in ("token-key.service", "late-key.service", "reader.service"))
    assert host.on(GIVEN_HOST, "systemctl", "show", "--property=NRestarts", "--value", "reader") == "0"
    status = host.get("nixmachine", HOST)["status"]
    assert [one["name"] for one in status["keys"]] == ["late", "token"]
    assert condition({"status": status}, "KeysPresent")["status"] == "True"


def test_a_rotation_reaches_the_machine_and_restarts_those_that_are_named(host: Place) -> None:
    reader, *others = starts(host, "reader", "bystander", "token-key", "late-key")
    digest = host.get("nixmachine", HOST)["status"]["keys"][1]["digest"]
    host.secret("tokens", {"token": "second", "late": "ümläut\n"})
    await_content(host, TOKEN, "second")
    eventually(lambda: starts(host, "reader") != [reader], "the reader is restarted")
    assert starts(host, "bystander", "token-key", "late-key") == others
    assert is_active(host, "token-key.service")
    eventually(lambda: host.get("nixmachine", HOST)["status"]["keys"][1]["digest"] != digest, "another digest is told")
    host.wait_ready(f"nixmachine/{HOST}")


def test_a_key_that_somebody_takes_or_writes_is_put_back(host: Place) -> None:
    since = host.mark()
    host.on(GIVEN_HOST, "rm", TOKEN)
    await_content(host, TOKEN, "second")
    assert host.on(GIVEN_HOST, "stat", "-c", "%a %U %G", TOKEN) == "440 site site"
    host.on(GIVEN_HOST, "sh", "-c", f"echo by hand >{LATE}")
    await_content(host, LATE, "ümläut\n")
    eventually(lambda: is_active(host, "token-key.service"), "the key's unit is active again")
    eventually(lambda: ("False", "KeyDrift") in host.told(HOST, "UpToDate", since), "it is told")
    host.wait_ready(f"nixmachine/{HOST}")
    assert "False" not in {status for status, _ in host.told(HOST, "Ready", since)}


def test_after_a_power_cut_the_keys_come_again_and_their_readers_wait_for_them(host: Place) -> None:
    boots = {one["deliveredBoot"] for one in host.get("nixmachine", HOST)["status"]["keys"]}
    host.lab.control.cut_power(GIVEN_HOST)
    host.lab.control.switch_on(GIVEN_HOST)
    await_content(host, TOKEN, "second")
    eventually(lambda: is_active(host, "reader.service"), "the reader runs")
    assert host.on(GIVEN_HOST, "systemctl", "show", "--property=NRestarts", "--value", "reader") == "0"
    assert content(host, LATE) == "ümläut\n"

    def boot_of_token() -> str:
        return str(host.get("nixmachine", HOST)["status"]["keys"][1]["deliveredBoot"])

    eventually(lambda: boot_of_token() not in boots, "the status tells the boot")
    host.wait_ready(f"nixmachine/{HOST}")


def test_without_its_secret_no_system_is_activated_and_what_is_there_stays(host: Place) -> None:
    system = host.system_of(GIVEN_HOST)
    host.secret("tokens", {"late": "ümläut\n"})
    host.ask_to_look(f"nixmachine/{HOST}")
    host.await_condition("nixmachine", HOST, {"KeysPresent": "False/SecretNotFound"})
    host.apply(specs.on_host(host.lab, specs.page("Without a token", USES_THE_TOKEN), keys=KEYS))
    found = host.await_condition(
        "nixmachine", HOST, {"KeysPresent": "False/SecretNotFound", "Stalled": "True/SecretNotFound"}
    )
    assert condition(found, "Ready")["message"].startswith(
        "Secret tokens, for the key token, has no key token; it has late"
    )
    eventually(
        lambda: condition(host.get("nixmachine", HOST), "ConfigurationBuilt").get("status") == "True", "it is built"
    )
    assert (host.system_of(GIVEN_HOST), content(host, TOKEN)) == (system, "second")
    host.secret("tokens", {"token": "third", "late": "ümläut\n"})
    host.wait_ready(f"nixmachine/{HOST}")
    assert host.system_of(GIVEN_HOST) != system
    assert content(host, TOKEN) == "third"


def test_a_suspended_machine_keeps_the_key_that_it_has(host: Place) -> None:
    host.patch("nixmachine", HOST, {"op": "add", "path": "/spec/suspend", "value": True})
    host.secret("tokens", {"token": "fourth", "late": "ümläut\n"})
    host.await_condition("nixmachine", HOST, {"KeysPresent": "False/Delivering"})
    assert content(host, TOKEN) == "third"
    host.patch("nixmachine", HOST, {"op": "remove", "path": "/spec/suspend"})
    await_content(host, TOKEN, "fourth")


def test_a_key_that_leaves_the_spec_leaves_the_machine(host: Place) -> None:
    host.apply(specs.on_host(host.lab, specs.page("No keys"), keys=[]))
    await_content(host, TOKEN, None)
    await_content(host, LATE, None)
    eventually(lambda: is_ready(host.get("nixmachine", HOST)), "it is ready without them")
    assert host.on(GIVEN_HOST, "cat", "/var/lib/nixops/keys") == ""
    for unit in ("token-key.service", "late-key.path"):
        assert host.on(GIVEN_HOST, "systemctl", "show", "--property=LoadState", "--value", unit) == "not-found"
    assert "keys" not in host.get("nixmachine", HOST)["status"]
