"""The lab's control interface, from the caller's side: what runs, knobs, faults, the call log."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nixops_lab.report import LabError


@dataclass(frozen=True)
class Control:
    """`url` without a trailing slash. All calls raise LabError with the lab's own words when it refuses."""

    url: str

    def machines(self) -> list[dict[str, Any]]:
        """[{name, state, last_line, private_address, public_address, leader}], by name.

        `state` is off, booting, on or dead: a dead one has power, whatever EC2 calls it, and does not answer;
        `last_line` is what it said last. `leader` is the pid of its init, or null.
        """
        return list(self._call("GET", "/machines"))

    def cut_power(self, machine: str) -> None:
        self._call("POST", f"/machines/{machine}/kill", {})

    def switch_on(self, machine: str) -> None:
        """A given host only; returns when its init runs."""
        self._call("POST", f"/machines/{machine}/start", {})

    def add_host(self, name: str, root: Path) -> dict[str, Any]:
        """One more given host, with the root file system in folder `root`. Returns when its sshd speaks: as in
        `machines`."""
        return dict(self._call("PUT", f"/machines/{name}", {"root": str(root)}))

    def set_knobs(self, knobs: Mapping[str, object]) -> Any:
        return self._call("POST", "/knobs", knobs)

    def fault(self, fault: Mapping[str, object]) -> Any:
        return self._call("POST", "/faults", fault)

    def set_cache(self, knobs: Mapping[str, object]) -> Any:
        """Knobs of the binary cache and of sources (binary_cache/server.py). Returns all."""
        return self._call("POST", "/cache/knobs", knobs)

    def fill_cache(self, folder: Path) -> None:
        """From now on it has what lies there."""
        self._call("POST", "/cache/fill", {"folder": str(folder)})

    def cache_log(self) -> list[dict[str, Any]]:
        """[{path, status, bytes}], the oldest first."""
        return list(self._call("GET", "/cache/log"))

    def reset_cache(self) -> None:
        """Knobs as after `up`, and an empty log; what it has stays."""
        self._call("POST", "/cache/reset", {})

    def reset(self) -> None:
        """Knobs and faults as they were after `up`."""
        self._call("POST", "/reset", {})

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
        request = urllib.request.Request(self.url + path, method=method)  # noqa: S310 - always http on loopback
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise LabError(_said(error.read(), f"{method} {path}: {error.code}")) from None
        except OSError as error:
            raise LabError(
                f"the lab's control interface at {self.url} does not answer ({error}): `lab up` repairs it"
            ) from None
        return json.loads(text) if text else None


def _said(body: bytes, otherwise: str) -> str:
    """What the lab says was wrong; `otherwise` and the body where it says nothing of its own."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{otherwise} {body.decode(errors='replace').strip()}"


def find_machine(
    wanted: str, machines: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """A machine by its own name, or by the name of the NixMachine whose instance id or host address it has.

    `objects` are NixMachines as the API gives them. Raises LabError if none or several fit.
    """
    for machine in machines:
        if machine["name"] == wanted:
            return machine
    named = [thing for thing in objects if thing["metadata"]["name"] == wanted]
    found = [machine for machine in machines if any(_stands_for(thing, machine) for thing in named)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(machine["name"] for machine in found)
        raise LabError(f"{wanted} is the name of NixMachines in several namespaces: use one of {names}")
    raise LabError(f"no machine {wanted}; there are: {', '.join(machine['name'] for machine in machines) or 'none'}")


def _stands_for(thing: Mapping[str, Any], machine: Mapping[str, Any]) -> bool:
    instance = (thing.get("status") or {}).get("instance") or {}
    host = (thing["spec"].get("target") or {}).get("host") or {}
    return bool(machine["name"] == instance.get("id") or machine["private_address"] == host.get("address"))
