"""The configuration's sources: files, modules, nixpkgs, and what the machine itself must say first."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace

from nixops_operator import job_names
from nixops_operator.api.field_types import without_nul
from nixops_operator.api.machine_spec import KeyUpload, System
from nixops_operator.api.reasons import Reason
from nixops_operator.api.status import OriginStatus, read
from nixops_operator.data_keys import listed_keys, not_there
from nixops_operator.errors import Blocked, EvaluationFailed, InvalidSpec, OperatorError
from nixops_operator.facts.kube import Key, Kind, key_of
from nixops_operator.facts.nix import Archive, Evaluation, KeyFile, Module, SystemInput, Tree, Waiting
from nixops_operator.jobs import Done, Failed
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.observed import ObservedCloud, ObservedHost, ObservedSystem
from nixops_operator.machine.system import build_place, input_hash
from nixops_operator.ready import was_reached
from nixops_operator.shared_facts import Reader
from nixops_operator.world import World, no_nixpkgs

_ARCHITECTURES = {"x86_64": System.X86_64_LINUX.value, "arm64": System.AARCH64_LINUX.value}
_RELEASE = re.compile(r"nixos/(\d\d\.\d\d)")


async def observe(desired: Desired, cloud: ObservedCloud | None, host: ObservedHost, world: World) -> ObservedSystem:
    """The configuration, as far as it is resolved."""
    configuration = desired.spec.configuration
    try:
        files = await _files(desired, world)
        modules = await _modules(desired, files, world)
        nixpkgs_path, nixpkgs = _nixpkgs(desired, files, world)
        system = await _system_kind(desired, world)
        build_on = build_place(configuration.build.place, world.policy.build_on, world.nix.no_builder(system))
    except OperatorError as error:
        return ObservedSystem(error=error, confirmed=_confirmed(desired, error))
    state_version = _state_version(desired, cloud, host)
    if state_version is None and desired.spec.target.host is None:
        return ObservedSystem(waits_for="the machine, to learn its NixOS release (system.stateVersion)")
    given = SystemInput(
        name=desired.machine,
        deployment=desired.deployment,
        uuid=desired.uuid,
        system=system,
        is_ec2=desired.spec.target.ec2 is not None,
        files=files,
        archive=_archive(desired),
        nixpkgs_path=nixpkgs_path,
        nixpkgs=nixpkgs,
        modules=modules,
        state_version=state_version,
        arguments=dict(configuration.arguments),
        keys=_keys(desired),
    )
    default_hash = world.hash_of(nixpkgs) if nixpkgs is not None and nixpkgs == world.policy.nixpkgs else None
    if (changed := _changed_default(desired, default_hash)) is not None:
        return ObservedSystem(error=changed, confirmed=desired.system.desired)
    known = ObservedSystem(
        input=given,
        evaluate_job=job_names.evaluate(input_hash(given)),
        build_on=build_on,
        default_nixpkgs=default_hash,
    )
    return _with_facts(desired, known, world)


def _with_facts(desired: Desired, system: ObservedSystem, world: World) -> ObservedSystem:
    """Whether the evaluation was told what is so now, and what it waits for."""
    reader, known = reader_of(desired, world), world.facts
    match world.jobs.states(desired.key).get(system.evaluate_job):
        case Done(Evaluation(told=told)) | Failed(EvaluationFailed(told=told)):
            return replace(system, is_outdated=known.told(reader, told) != told)
        case Done(Waiting(path, told)):
            awaited, is_unseen = known.awaited(reader, path)
            is_outdated = known.told(reader, told) != told
            return replace(system, is_outdated=is_outdated, awaited=awaited, is_unseen=is_unseen)
        case _:
            return system


def reader_of(desired: Desired, world: World) -> Reader:
    """The machine as one that reads facts. One without a deployment has only itself; those whose deployment has gone
    without them still have each other."""
    namespace, uid = desired.key.namespace, desired.deployment_uid
    deployment = Key(Kind.DEPLOYMENT, namespace, desired.deployment) if uid is not None else None
    owner = world.cache.get(deployment) if deployment is not None else None
    siblings = None
    if owner is None or owner["metadata"]["uid"] != uid:
        siblings = {desired.machine: desired.key}
        if uid is not None:
            siblings = _orphans(namespace, uid, world) | siblings
    return Reader(desired.key, desired.machine, desired.uuid, deployment, siblings)


def _orphans(namespace: str, uid: str, world: World) -> dict[str, Key]:
    found = {}
    for body in world.cache.in_namespace(Kind.MACHINE, namespace):
        origin = read(OriginStatus, (body.get("status") or {}).get("origin"))
        if origin is not None and origin.uid == uid and not body["metadata"].get("deletionTimestamp"):
            found[origin.machine] = key_of(body)
    return found


def _changed_default(desired: Desired, nar_hash: str | None) -> OperatorError | None:
    """Why a machine stays what it is although the operator's default nixpkgs is another one now; None if it is not, or
    if somebody asked for it by an edit or a request since."""
    recorded = desired.system.nixpkgs
    is_settled = was_reached(desired.status, desired.generation) and desired.system.activated_at is not None
    if not is_settled or recorded is None or nar_hash in (None, recorded) or desired.requests.new is not None:
        return None
    message = (
        f"the operator's default nixpkgs has changed (nix.nixpkgs; now {nar_hash}); this machine takes it with the "
        "next change of its spec, or when it is asked to reconcile, and keeps its own nixpkgs if "
        "spec.configuration.nixpkgs names one"
    )
    return Blocked(Reason.NIXPKGS_CHANGED, message)


def _confirmed(desired: Desired, error: OperatorError) -> str | None:
    """The system that was confirmed for this very generation, where only its source has gone meanwhile."""
    is_gone = error.reason is Reason.SOURCE_NOT_FOUND and was_reached(desired.status, desired.generation)
    return desired.system.desired if is_gone and desired.system.activated_at is not None else None


async def _files(desired: Desired, world: World) -> Mapping[str, bytes] | None:
    source = desired.spec.configuration.source
    if source is None or source.config_map_ref is None:
        return None
    name = source.config_map_ref.name
    found = await world.reads.config_map(desired.key.namespace, name)
    if found is None:
        raise Blocked(Reason.SOURCE_NOT_FOUND, f"ConfigMap {name} with the configuration does not exist; create it")
    return found


async def _modules(desired: Desired, files: Mapping[str, bytes] | None, world: World) -> tuple[Module, ...]:
    modules = []
    for place, module in enumerate(desired.spec.configuration.modules):
        field = f"modules[{place}]"
        if module.path is not None:
            if files is not None and module.path not in files:
                message = f"{module.path} is no key of the source's ConfigMap; it has {listed_keys(files)}"
                raise InvalidSpec(f"spec.configuration.{field}.path", message)
            if files is not None:
                _text(files[module.path], f"{module.path} ({field})")
            modules.append(Module(module.path, path=module.path))
        elif module.inline is not None:
            # What it is shared with is the object's body, and the machines that declare the same.
            modules.append(Module(field, text=sys.intern(module.inline)))
        elif (reference := module.config_map_key_ref) is not None:
            found = await world.reads.config_map(desired.key.namespace, reference.name)
            if found is None or reference.key not in found:
                world.reads.forget_config_map(desired.key.namespace, reference.name)
                what = f"ConfigMap {reference.name} ({field})"
                raise Blocked(Reason.SOURCE_NOT_FOUND, not_there(what, reference.key, found))
            label = f"{reference.name}/{reference.key}"
            modules.append(Module(label, text=_text(found[reference.key], f"{label} ({field})")))
    return tuple(modules)


def _archive(desired: Desired) -> Archive | None:
    source = desired.spec.configuration.source
    given = source.archive if source is not None else None
    return Archive(given.url, given.hash) if given is not None else None


def _nixpkgs(desired: Desired, files: Mapping[str, bytes] | None, world: World) -> tuple[str | None, Tree | None]:
    """The folder of the source that holds nixpkgs, or else the tree that is nixpkgs."""
    nixpkgs = desired.spec.configuration.nixpkgs
    if nixpkgs is None:
        if world.policy.nixpkgs is None:
            raise no_nixpkgs()
        return None, world.policy.nixpkgs
    if nixpkgs.url is not None and nixpkgs.hash is not None:
        return None, Archive(nixpkgs.url, nixpkgs.hash)
    assert nixpkgs.path is not None  # noqa: S101 - shown by the spec
    if files is None:
        return nixpkgs.path, None  # of an archive, whose files are not known yet
    # The names of a ConfigMap's keys.
    folder = nixpkgs.path.rstrip("/") + "/"
    if not any(name.startswith(folder) for name in files or {}):
        message = f"the source has no file below {folder}; it has {listed_keys(files or {})}"
        raise InvalidSpec("spec.configuration.nixpkgs.path", message)
    return nixpkgs.path, None


def _keys(desired: Desired) -> tuple[KeyFile, ...]:
    return tuple(
        KeyFile(
            key.name,
            key.place,
            key.user,
            key.group,
            f"{key.mode:04o}",
            is_first=key.upload is KeyUpload.BEFORE_ACTIVATION,
        )
        for key in sorted(desired.spec.keys, key=lambda key: key.name)
    )


def _text(data: bytes, where: str) -> str:
    """A module's bytes as text. What is no UTF-8 is refused: read any other way it would mean something else."""
    try:
        return without_nul(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        message = f"{where} is not UTF-8 text (byte {error.start + 1}); store it as UTF-8"
    except ValueError as error:
        message = f"{where} {error}"
    raise InvalidSpec("spec.configuration.modules", message)


async def _system_kind(desired: Desired, world: World) -> str:
    if desired.spec.configuration.system is not None:
        return desired.spec.configuration.system.value
    ec2 = desired.spec.target.ec2
    if ec2 is None:
        return System.X86_64_LINUX.value
    view = await world.cloud(desired.key, desired.uids, desired.spec.aws)
    return _ARCHITECTURES[view.architecture(ec2.instance_type)]


def _state_version(desired: Desired, cloud: ObservedCloud | None, host: ObservedHost) -> str | None:
    """The release that the machine was first installed with; it belongs to the machine and never follows the nixpkgs in
    use. None: not known yet, and of a given host never: its os-release tells what it runs today."""
    known = desired.system.state_version
    if known is not None or desired.spec.target.host is not None:
        return known
    if host.facts is not None:
        return host.facts.state_version or host.facts.version_id
    # Before first contact an image's name tells its release, so that evaluation need not wait for the boot.
    found = _RELEASE.match(cloud.image_name or "") if cloud is not None else None
    return found.group(1) if found else None
