"""`up` and `down`: everything a lab starts, in order, and its end after any kind of crash."""

import asyncio
import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from nixops_lab import (
    cluster,
    control_plane,
    environment,
    forwarder,
    identities,
    limits,
    machines,
    network,
    node,
    operator_process,
    prerequisites,
    processes,
    state,
    tools_root,
)
from nixops_lab.paths import SOURCES, LabPaths
from nixops_lab.report import LabError, say

PORTS = ("api", "ec2", "control", "operator")
DAEMON_START_SECONDS = 120
SOURCES_ON_PATH = {**os.environ, "PYTHONPATH": str(SOURCES), "LAB_PYTHON": sys.executable}
# What one run leaves for the next to read, and what the next begins without.
PER_RUN = (
    "control-plane",
    "machines",
    "node",
    "operator",
    "bin",
    "log",
    "nixpkgs*",
    "archives",
    "git",
    "flux-storage",
    "argocd",
    "audit.log",
    "ec2.log",
    "kubeconfig",
    "env",
)
# The rest of its folder are logs and settings.
NODE_DISK = ("containerd", "images", "kubelet", "upper", "work")


@contextlib.contextmanager
def exclusively(paths: LabPaths) -> Iterator[None]:
    """One `up` or `down` at a time for one lab; the kernel gives the lock back whatever becomes of its holder."""
    paths.folder.mkdir(parents=True, exist_ok=True)
    with paths.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another `lab up` or `lab down` works on this lab; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def up(paths: LabPaths, seed: int, with_node: bool = False) -> None:
    """A running lab, or LabError, or KeyboardInterrupt; in the last two nothing is left behind. `with_node`: and a node
    in its cluster; a lab that runs without one gets it."""
    prerequisites.check(paths)
    prerequisites.install_packages()
    limits.raise_limits()
    with exclusively(paths):
        before = state.read(paths.state)
        if before is not None and (wrong := complaint(paths, before)) is None:
            cluster.install_changes(paths)
            say(f"already running in {paths.folder} (seed {before.seed}); `lab down` ends it")
            if with_node and node.pid(paths) is None:
                asyncio.run(_add_node(paths, before))
            return
        if before is not None:
            say(f"an earlier run has to be cleared away first: {wrong}")
        began = time.monotonic()
        clear(paths)
        try:
            asyncio.run(_start(paths, seed, with_node))
        except BaseException:
            say("not finished: taking down what was started")
            with _uninterrupted():
                clear(paths)
            raise
        option = _option(paths)
        say(f'ready after {time.monotonic() - began:.1f} s: eval "$(lab env{option})" or `lab run{option} -- CMD`')


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C does not stop the clearing that the first one began; it takes a second or two."""
    before = {
        number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def down(paths: LabPaths) -> None:
    """Ends everything that belongs to this lab. Safe to repeat, also after a crash or a reboot."""
    if not paths.folder.is_dir():
        say(f"there is no lab in {paths.folder}")
        return
    with exclusively(paths):
        clear(paths)
    say(f"nothing of the lab in {paths.folder} runs any more; its logs stay there")


def running(paths: LabPaths) -> state.State:
    """The state of a lab that is up. Raises LabError with the remedy otherwise."""
    lab = state.read(paths.state)
    if lab is None or lab.phase != "ready":
        raise LabError(f"no lab is running in {paths.folder}: start it with `lab up{_option(paths)}`")
    return lab


def complaint(paths: LabPaths, lab: state.State) -> str | None:
    """Why this lab cannot be used as it is; None if it is whole."""
    if lab.phase != "ready":
        return "its start was interrupted"
    for name, process in lab.processes.items():
        if not processes.is_alive(process):
            return f"{name} (pid {process.pid}) has ended, see {paths.logs / name}.log"
    if not control_plane.is_ready(lab.ports["api"], paths.control_plane / "authority.crt"):
        return f"the API server does not answer, see {paths.logs / 'kube-apiserver.log'}"
    if not _answers(f"http://127.0.0.1:{lab.ports['control']}/health"):
        return f"the control interface does not answer, see {paths.logs / 'daemon.log'}"
    return None


async def _add_node(paths: LabPaths, lab: state.State) -> None:
    tools, programs = await _node_parts()
    await _join_node(paths, lab, tools, programs)


async def _node_parts() -> tuple[Path, Path]:
    """What a node is made of, compiled and fetched if need be: its root file system, its programs."""
    programs = await _words(str(SOURCES / "control_plane" / "build.sh"), "--node")
    return await asyncio.to_thread(tools_root.build), Path(programs)


async def _join_node(paths: LabPaths, lab: state.State, tools: Path, programs: Path) -> state.State:
    def started(name: str, process: processes.Recorded) -> None:
        nonlocal lab
        lab = lab.with_process(name, process)
        state.write(paths.state, lab)

    await asyncio.to_thread(node.join, paths, lab.ports, tools, programs, started)
    say("the node is Ready")
    return lab


async def _start(paths: LabPaths, seed: int, with_node: bool) -> None:
    for place in [place for name in PER_RUN for place in paths.folder.glob(name)]:
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)
    who = identities.load(paths)
    lab = _open_network(paths, seed)

    def started(name: str, process: processes.Recorded) -> None:
        nonlocal lab
        lab = lab.with_process(name, process)
        state.write(paths.state, lab)

    async def bring_up_api() -> None:
        programs = Path(await _words(str(SOURCES / "control_plane" / "build.sh")))
        _link_programs(paths, programs)
        await control_plane.start(programs, paths, lab.ports["api"], started)
        say("the Kubernetes API answers")
        await asyncio.to_thread(cluster.install_changes, paths)

    async def bring_up_machines() -> None:
        await _words(str(SOURCES / "nixpkgs" / "assemble.sh"), str(paths.nixpkgs))
        root = await _words(sys.executable, "-m", "nixops_lab.machines.root_filesystem", str(paths.nixpkgs))
        log = paths.logs / "daemon.log"
        argv = [*network.entering(paths.namespace), sys.executable, "-m", "nixops_lab.daemon", str(paths.folder), root]
        process = processes.start(argv, log, SOURCES_ON_PATH)
        started("daemon", process)
        url = f"http://127.0.0.1:{lab.ports['control']}/health"
        await control_plane.until(lambda: _answers(url), process, "daemon", log, DAEMON_START_SECONDS)
        say("EC2 and the given host answer")

    async def make_image() -> None:
        # The operator's root file system; nothing of `up` needs it, and the first start would wait for it.
        await _words(sys.executable, "-m", "nixops_lab.image")

    parts: list[tuple[Path, Path]] = []

    async def make_node_parts() -> None:
        parts.append(await _node_parts())

    work = [bring_up_api(), bring_up_machines(), make_image(), *([make_node_parts()] if with_node else [])]
    await _all_or_first_error(*work)
    for tools, programs in parts:
        lab = await _join_node(paths, lab, tools, programs)
    paths.environment.touch(mode=0o600)
    paths.environment.write_text(environment.export_lines(paths, environment.variables(paths, lab, who)))
    lab = state.State("ready", lab.seed, lab.ports, lab.processes)
    state.write(paths.state, lab)


def _open_network(paths: LabPaths, seed: int) -> state.State:
    """The namespace, and the ports on the caller's loopback. The state is on disk before the first process starts."""
    listening = forwarder.listen(dict.fromkeys(PORTS, 0))
    lab = state.State("starting", seed, {name: outer.getsockname()[1] for name, outer in listening.items()})
    state.write(paths.state, lab)
    network.create(paths.namespace)
    sockets = list(listening.values())
    process = processes.start(
        [
            *network.entering(paths.namespace),
            sys.executable,
            "-m",
            "nixops_lab.forwarder",
            *forwarder.arguments(sockets),
        ],
        paths.logs / "forwarder.log",
        SOURCES_ON_PATH,
        pass_fds=[outer.fileno() for outer in sockets],
    )
    for outer in sockets:
        outer.close()
    lab = lab.with_process("forwarder", process)
    state.write(paths.state, lab)
    return lab


def _link_programs(paths: LabPaths, programs: Path) -> None:
    paths.programs.mkdir(exist_ok=True)
    plugin = Path(sys.prefix) / "bin" / "kubectl-nixops"
    for target in (programs / "kubectl", programs / "helm", SOURCES / "lab", plugin):
        if target.exists():
            (paths.programs / target.name).symlink_to(target)


async def _words(*argv: str) -> str:
    """The last line that a program prints.

    Its stderr is the caller's. Raises LabError if it fails; cancelled, it is ended.
    """
    running = await asyncio.create_subprocess_exec(
        *argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=SOURCES_ON_PATH, start_new_session=True
    )
    try:
        output, _ = await running.communicate()
    except asyncio.CancelledError:
        processes.end_session(running.pid)
        await running.wait()
        raise
    if running.returncode != 0:
        raise LabError(f"{shlex.join(argv)} ended with {running.returncode}; what it said is above")
    return (output.decode().splitlines() or [""])[-1]


async def _all_or_first_error(*work: object) -> None:
    """Runs all; the first error cancels the others and is raised as itself, not in a group."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)  # type: ignore[arg-type]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def clear(paths: LabPaths) -> None:
    """Ends the processes, machines, mounts and the namespace of this lab, whatever is left of them."""
    operator_process.kill(paths)
    lab = state.read(paths.state)
    # What these hold is thrown away with them: nothing is gained by asking first.
    processes.end(list(lab.processes.values()) if lab is not None else [], grace=0)
    machines.clean(paths.folder)
    # Whatever else is inside: started by a process that died before it could write it down, or by `lab run`.
    strays = [found for pid in network.pids(paths.namespace) if (found := processes.record(pid)) is not None]
    processes.end(strays, grace=2)
    network.delete(paths.namespace)
    _unmount_below(paths.folder)
    # The operator's store, the node's images and etcd's files are large and of no use any more.
    for large in (paths.operator / "nix", paths.control_plane, *(paths.node / name for name in NODE_DISK)):
        if large.exists():
            shutil.rmtree(large)
    paths.environment.unlink(missing_ok=True)
    paths.state.unlink(missing_ok=True)


def mounts_below(folder: Path, table: str) -> list[str]:
    """Mount points of `table` (/proc/self/mounts, with its octal escapes) at or below `folder`, the deepest first."""
    points = [line.split(" ")[1].encode().decode("unicode_escape") for line in table.splitlines()]
    return sorted((point for point in points if Path(point).is_relative_to(folder)), key=len, reverse=True)


def _unmount_below(folder: Path) -> None:
    for point in mounts_below(folder, Path("/proc/self/mounts").read_text()):
        subprocess.run(["umount", "--lazy", point], check=True)


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _option(paths: LabPaths) -> str:
    """How a person names this lab in a command."""
    return "" if paths == LabPaths.of(None) else f" --dir {paths.folder}"
