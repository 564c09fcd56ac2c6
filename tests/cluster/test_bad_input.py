"""Mistakes that people make: each is told in the words of its condition, costs nothing while it lasts, and is over as
soon as its cause is mended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import asyncssh
import pytest

from cluster import specs
from cluster.place import Place, condition, is_ready, operator_writes, standing
from cluster.polling import eventually

SYNTAX_ERROR = """{
  services.httpd.enable = true;
  services.httpd.adminAddr = ;
}
"""
UNKNOWN_OPTION = """{
  services.htpd.enable = true;
}
"""
SILENT, FOREIGN = "192.0.2.77", "203.0.113.9"  # nobody is there; outside hosts.allowedCidrs
UNKNOWN_TYPE, UNKNOWN_IMAGE = "t2.gigantic", "ami-0123456789abcdef0"
WATCHED_SECONDS = 20  # four periods of every look
PERIOD_SECONDS = 5
PAGE = "Mended"
# The same name for all, hence the same system: it is built once, and the given host switches once.
MODULE = specs.page(PAGE, 'networking.hostName = "mended";')


def key_text() -> str:
    """A private key that no host knows."""
    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


def public_key_text() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


def source(text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "source"}, "data": {"web.nix": text}}


@dataclass(frozen=True)
class Mistake:
    """`wanted`: condition type → status/reason. `says`: parts of the message. `mend` makes it good."""

    kind: str
    name: str
    make: Callable[[Place], None]
    wanted: dict[str, str]
    says: tuple[str, ...]
    mend: Callable[[Place], None] = field(repr=False)
    told_as: str = "Stalled"


def host(place: Place, name: str, **more: Any) -> None:
    place.apply(specs.on_host(place.lab, MODULE, name, **more))


def ssh(place: Place, secret: str = "existing-host-ssh", key: str = "") -> dict[str, Any]:
    return {"privateKeySecretRef": {"name": secret}, "hostKeys": [key or specs.host_key(place.lab)]}


def from_source() -> dict[str, Any]:
    modules = [{"path": "web.nix"}, {"inline": MODULE}, {"inline": specs.HARDWARE}]
    return {"source": {"configMapRef": {"name": "source"}}, "modules": modules}


def site(place: Place, name: str, secret: str = "aws", **machine: Any) -> None:
    deployment = specs.on_ec2(MODULE, name, **machine)
    deployment["spec"]["aws"]["credentials"]["secretRef"]["name"] = secret
    place.apply(deployment)


def stalled(reason: str, **more: str) -> dict[str, str]:
    return {"Ready": f"False/{reason}", "Stalled": f"True/{reason}", **more}


def with_syntax_error(place: Place) -> None:
    place.apply(source(SYNTAX_ERROR))
    host(place, "syntax-error", configuration=from_source())


def with_wrong_ssh_key(place: Place) -> None:
    place.secret("wrong", {"ssh-privatekey": key_text()}, "kubernetes.io/ssh-auth")
    host(place, "wrong-ssh-key", ssh=ssh(place, "wrong"))


def with_wrong_aws_secret(place: Place) -> None:
    key, _ = place.operator_identity
    text = f"[nixops-example]\naws_access_key_id = {key}\naws_secret_access_key = {'x' * 40}\n"
    place.secret("aws-wrong", {"credentials": text})
    site(place, "wrong-aws-secret", "aws-wrong")


ON_HOST = (
    Mistake(
        "nixmachine",
        "syntax-error",
        with_syntax_error,
        stalled("EvaluationFailed", ConfigurationBuilt="False/EvaluationFailed"),
        ("web.nix:3:30", "syntax error"),
        lambda place: place.apply(source("{ }")),
    ),
    Mistake(
        "nixmachine",
        "no-ssh-secret",
        lambda place: host(place, "no-ssh-secret", ssh=ssh(place, "forgotten")),
        stalled("SecretNotFound", CredentialsReady="False/SecretNotFound"),
        ("forgotten", "does not exist", "create it"),
        lambda place: place.ssh_secret("forgotten"),
    ),
    Mistake(
        "nixmachine",
        "wrong-ssh-key",
        with_wrong_ssh_key,
        stalled("AuthenticationFailed", Reachable="False/AuthenticationFailed"),
        ("192.0.2.10", "refused the client key for root", "ssh.privateKeySecretRef"),
        lambda place: place.ssh_secret("wrong"),
    ),
    Mistake(
        "nixmachine",
        "other-host-key",
        lambda place: host(place, "other-host-key", ssh=ssh(place, key=public_key_text())),
        stalled("HostKeyMismatch", Reachable="False/HostKeyMismatch"),
        ("192.0.2.10", "SHA256:", "No login was tried"),
        lambda place: host(place, "other-host-key"),
    ),
    Mistake(
        "nixmachine",
        "foreign-host",
        lambda place: host(place, "foreign-host", target={"host": {"address": FOREIGN}}),
        stalled("HostForbidden"),
        (FOREIGN, "hosts.allowedCidrs"),
        lambda place: host(place, "foreign-host"),
    ),
    Mistake(
        "nixmachine",
        "silent-host",
        lambda place: host(place, "silent-host", target={"host": {"address": SILENT}}),
        {
            "Ready": "False/ConnectTimeout",
            "Reconciling": "True/ConnectTimeout",
            "Reachable": "False/ConnectTimeout",
        },
        (SILENT,),
        lambda place: host(place, "silent-host"),
        told_as="Reachable",
    ),
)

ON_EC2 = (
    # Not on the given host: a machine with another mistake owns that.
    Mistake(
        "nixdeployment",
        "unknown-option",
        lambda place: site(place, "unknown-option", configuration={"modules": [{"inline": UNKNOWN_OPTION}]}),
        stalled("EvaluationFailed"),
        ("services.htpd", "does not exist", "modules[0]"),
        lambda place: site(place, "unknown-option"),
    ),
    Mistake(
        "nixdeployment",
        "unknown-type",
        lambda place: site(place, "unknown-type", ec2={"instanceType": UNKNOWN_TYPE}),
        stalled("InvalidSpec"),
        (UNKNOWN_TYPE, "spec.target.ec2.instanceType"),
        lambda place: site(place, "unknown-type"),
    ),
    Mistake(
        "nixdeployment",
        "unknown-image",
        lambda place: site(place, "unknown-image", ec2={"image": {"id": UNKNOWN_IMAGE}}),
        stalled("ImageNotFound"),
        (UNKNOWN_IMAGE,),
        lambda place: site(place, "unknown-image"),
    ),
    Mistake(
        "nixdeployment",
        "no-aws-secret",
        lambda place: site(place, "no-aws-secret", "aws-forgotten"),
        stalled("SecretNotFound", CredentialsReady="False/SecretNotFound"),
        ("aws-forgotten", "does not exist", "create it"),
        lambda place: place.aws_secret("aws-forgotten"),
    ),
    Mistake(
        "nixdeployment",
        "wrong-aws-secret",
        with_wrong_aws_secret,
        stalled("AuthFailure", CredentialsReady="False/AuthFailure"),
        ("secret access key",),
        lambda place: place.aws_secret("aws-wrong"),
    ),
)
MISTAKES = (*ON_HOST, *ON_EC2)


def by_name(mistake: Mistake) -> str:
    return mistake.name


@pytest.fixture(scope="module")
def mistaken(shared_place: Place) -> Place:
    """All mistakes made at once; what else they need is there."""
    shared_place.aws_secret()
    shared_place.ssh_secret()
    for mistake in MISTAKES:
        mistake.make(shared_place)
    return shared_place


@pytest.mark.parametrize("mistake", MISTAKES, ids=by_name)
def test_a_mistake_is_told_with_its_place_and_its_remedy(mistaken: Place, mistake: Mistake) -> None:
    thing = mistaken.await_condition(mistake.kind, mistake.name, mistake.wanted)
    message = condition(thing, mistake.told_as)["message"]
    assert [part for part in mistake.says if part not in message] == [], message
    assert bool(condition(thing, "Stalled")) == ("Stalled" in mistake.wanted)
    reason = mistake.wanted["Ready"].removeprefix("False/")
    eventually(
        lambda: [told for kind, why, told in mistaken.events(mistake.name) if (kind, why) == ("Warning", reason)],
        f"an Event {reason}",
        last=lambda: mistaken.events(mistake.name),
    )


def test_mistakes_make_no_hot_loop(mistaken: Place) -> None:
    for mistake in MISTAKES:
        mistaken.await_condition(mistake.kind, mistake.name, mistake.wanted)
    writes, calls = mistaken.mark(), len(mistaken.lab.ec2_log())
    end = time.monotonic() + WATCHED_SECONDS
    eventually(lambda: time.monotonic() > end, "the time of watching is over")

    seen = mistaken.lab.ec2_log()[calls:]
    written = [
        (entry["verb"], entry["objectRef"]["resource"], entry["objectRef"]["name"])
        for entry in operator_writes(mistaken.lab.audit_log()[writes:])
        if entry["objectRef"]["resource"] != "leases"
    ]
    assert written == []
    operator = [call for call in seen if call["caller"] == mistaken.operator_identity[0]]
    mutating = [call["operation"] for call in operator if not call["operation"].startswith(("Describe", "Get"))]
    assert mutating == []
    periods = WATCHED_SECONDS / PERIOD_SECONDS
    # Deployments with usable credentials, and one whose are refused.
    assert {
        name: count for name, count in Counter(c["operation"] for c in operator).items() if count > 5 * periods
    } == {}


@pytest.mark.parametrize("mistake", ON_HOST, ids=by_name)
def test_a_mistake_about_a_host_is_over_once_it_is_mended(mistaken: Place, mistake: Mistake) -> None:
    mistaken.await_condition(mistake.kind, mistake.name, mistake.wanted)
    mistake.mend(mistaken)
    await_ready(mistaken, mistake)
    assert mistaken.title(mistaken.lab.env["LAB_HOST_ADDRESS"]) == PAGE
    # The next one is the same host.
    mistaken.kubectl("delete", mistake.kind, mistake.name)


def test_mistakes_about_ec2_are_over_once_they_are_mended(mistaken: Place) -> None:
    for mistake in ON_EC2:
        mistaken.await_condition(mistake.kind, mistake.name, mistake.wanted)
    for mistake in ON_EC2:
        mistake.mend(mistaken)
    for mistake in ON_EC2:
        await_ready(mistaken, mistake)
    served = [mistaken.title(instance["PublicIpAddress"]) for instance in mistaken.live_instances()]
    assert served == [PAGE] * len(ON_EC2)


def await_ready(place: Place, mistake: Mistake) -> None:
    def look() -> bool:
        thing = place.get(mistake.kind, mistake.name)
        return is_ready(thing) and not condition(thing, "Stalled")

    eventually(look, f"{mistake.name} is ready", last=lambda: standing(place.get(mistake.kind, mistake.name)))
