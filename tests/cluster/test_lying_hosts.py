"""A host whose root lies to the operator harms only its own machine: others are switched meanwhile, the operator lives
on, and no status or log shows what nobody can read."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cluster import specs
from cluster.hosts import Host, host_of
from cluster.place import GIVEN_HOST, Place, is_ready
from cluster.polling import eventually

LIAR, VICTIM = "host", "on-bookworm"
LIES = {
    "says something without end": "exec yes 'failed-unit nixops.service'",
    "complains without end": "exec yes >&2",
    "says nothing": "exec sleep 86399",
    "says yes to everything": """sh -c "$2" | sed '/^nixops-/!s/.*/yes/'""",
    "says a million things": """sh -c "$2" | awk '
        { print } /^boot-id / { for (n = 0; n < 1000000; n++) print "failed-unit u" n ".service" }'""",
    "commands the terminal of who reads it": r"""sh -c "$2" | sed '/^nixops-/!s/ .*/ \x1b[2J\xff\xfe\x00/'
        printf '\033]0;\377' >&2; exit 3""",
    "has another's system": """sh -c "$2" | sed 's,/nix/store/[^ ]*,/nix/store/../../etc/shadow,'""",
}
"""By what root's shell does with a command, its second argument."""
COMMANDS = ("\x1b", "\x00", *(f"\\{form}" for form in ("u001b", "x1b", "u0000", "x00", "udcff", "xff")))
"""To a terminal, as they are or written out; what stands in the place of bytes that are no UTF-8 is none."""


@pytest.fixture(scope="module")
def hosts(shared_place: Place) -> Host:
    """Both as declared; the one that is returned tells the truth."""
    place = shared_place
    place.ssh_secret()
    victim = host_of(place.lab, "bookworm")
    place.apply(specs.on_host(place.lab, specs.page("Liar"), LIAR), victim.declared(place.lab, page(0), "Operator"))
    place.wait_ready(f"nixmachine/{LIAR}", f"nixmachine/{VICTIM}")
    return victim


def page(number: int) -> str:
    return specs.page(f"Edit {number}")


@pytest.fixture
def lie(shared_place: Place, hosts: Host, request: pytest.FixtureRequest) -> Iterator[str]:
    """Root's shell on the liar; the connections that the operator holds are cut."""
    script = f"#!/bin/bash\n{LIES[request.param]}\n"
    place = shared_place
    place.lab.machine_exec(GIVEN_HOST, ["sh", "-c", "cat >/etc/lie; chmod 755 /etc/lie"], script)
    shell = place.on(GIVEN_HOST, "sh", "-c", "getent passwd root | cut -d: -f7").strip()
    set_shell(place, "/etc/lie")
    yield request.param
    set_shell(place, shell)
    place.wait_ready(f"nixmachine/{LIAR}")


def set_shell(place: Place, shell: str) -> None:
    place.on(GIVEN_HOST, "sed", "-i", f"s,^\\(root:.*:\\)[^:]*$,\\1{shell},", "/etc/passwd")
    place.on(GIVEN_HOST, "sh", "-c", "pkill -f 'sshd[:-].*root' || true")


@pytest.mark.long(instead="contract/test_host_connection.py")
@pytest.mark.parametrize("lie", LIES, indirect=True)
def test_a_host_that(shared_place: Place, hosts: Host, lie: str) -> None:
    place, log, since = shared_place, len(shared_place.lab.operator.log()), time.monotonic()
    eventually(
        lambda: not is_ready(place.get("nixmachine", LIAR)), "the liar is not believed", last=lambda: told(place)
    )

    title = page(list(LIES).index(lie) + 1)
    place.apply(hosts.declared(place.lab, title, "Operator"))
    place.wait_ready(f"nixmachine/{VICTIM}")

    print(f"{lie}: the other machine was switched {time.monotonic() - since:.0f} s after the lie began")
    said = place.lab.operator.log()[log:]
    assert "watching NixDeployments" not in said, "started again"
    assert not [sign for sign in COMMANDS if sign in said + told(place)]
    assert len(told(place)) < 20_000


def told(place: Place) -> str:
    """All that there is to read of the liar."""
    return place.kubectl("get", "nixmachine", LIAR, "--output=json") + place.kubectl("describe", "nixmachine", LIAR)
