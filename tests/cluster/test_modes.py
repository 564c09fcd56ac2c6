"""A built system becomes the running one as `activation` says: asked about, tested, made the next boot's, or left as it
is."""

from __future__ import annotations

from typing import Any

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from cluster.polling import eventually

HOST = "host"
FIRST, SECOND, THIRD, HALF, LAST = (f"The {which} page" for which in ("first", "second", "third", "half-done", "last"))


def declare(place: Place, title: str, more: str = "", **activation: Any) -> None:
    module = specs.page(title, more)
    place.apply(specs.on_host(place.lab, module, HOST, activation=specs.QUICK | activation))


def profile_of(place: Place) -> str:
    return place.on(GIVEN_HOST, "readlink", "--canonicalize", "/nix/var/nix/profiles/system")


def boot_entry_of(place: Place) -> str:
    return place.on(GIVEN_HOST, "cat", "/boot/nixos-entry")


def serves(place: Place, title: str) -> bool:
    return place.title(place.lab.env["LAB_HOST_ADDRESS"]) == title


def desired_of(place: Place) -> str:
    return str(place.get("nixmachine", HOST)["status"]["system"]["desired"])


def test_each_mode_does_what_it_says(place: Place) -> None:
    place.ssh_secret()
    declare(place, FIRST)
    place.wait_ready(f"nixmachine/{HOST}")
    first = place.system_of(GIVEN_HOST)
    attempts = place.activations(GIVEN_HOST)

    declare(place, SECOND, mode="DryActivate")
    told = place.await_condition("nixmachine", HOST, {"Ready": "False/DryActivated"})
    words = condition(told, "Ready")["message"]
    assert "httpd.service" in words
    assert words in {message for _, reason, message in place.events(HOST) if reason == "DryActivated"}
    assert place.system_of(GIVEN_HOST) == profile_of(place) == boot_entry_of(place) == first
    assert place.activations(GIVEN_HOST) == attempts
    assert serves(place, FIRST)

    declare(place, SECOND, mode="Test")
    place.wait_ready(f"nixmachine/{HOST}")
    second = place.system_of(GIVEN_HOST)
    assert second == desired_of(place) != first
    assert profile_of(place) == boot_entry_of(place) == first
    assert serves(place, SECOND)

    attempts = place.activations(GIVEN_HOST)
    declare(place, SECOND, mode="Switch")
    eventually(lambda: boot_entry_of(place) == second, "what was tested is the boot entry")
    place.wait_ready(f"nixmachine/{HOST}")
    assert profile_of(place) == second
    assert place.activations(GIVEN_HOST) == attempts

    declare(place, THIRD, mode="Boot")
    place.await_condition("nixmachine", HOST, {"Ready": "False/RebootRequired"})
    third = desired_of(place)
    assert place.system_of(GIVEN_HOST) == second
    assert profile_of(place) == boot_entry_of(place) == third != second
    assert serves(place, SECOND)
    place.kubectl("annotate", "nixmachine", HOST, f"nixops.dev/reboot-requested-at={place.mark()}")
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.system_of(GIVEN_HOST) == third
    assert serves(place, THIRD)


def test_without_a_way_back_a_half_done_system_stays_until_the_next_one(place: Place) -> None:
    place.ssh_secret()
    declare(place, FIRST)
    place.wait_ready(f"nixmachine/{HOST}")
    first = place.system_of(GIVEN_HOST)

    declare(place, HALF, "test.stc.exit = 2;", rollback="Never")
    told = place.await_condition("nixmachine", HOST, {"Ready": "False/ActivationFailed"})
    assert "it stays as it is, because activation.rollback is Never" in condition(told, "Ready")["message"]
    assert place.system_of(GIVEN_HOST) == desired_of(place) != first
    assert profile_of(place) == boot_entry_of(place) == first

    declare(place, LAST, rollback="Never")
    place.wait_ready(f"nixmachine/{HOST}")
    assert profile_of(place) == boot_entry_of(place) == place.system_of(GIVEN_HOST) == desired_of(place)
    assert serves(place, LAST)
