"""The lab command. Progress and errors go to stderr; stdout holds only what a program may want to read."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import yaml

from nixops_lab import (
    argocd,
    cluster,
    environment,
    gitops,
    identities,
    inside,
    lifecycle,
    operator_pod,
    operator_process,
    prerequisites,
    state,
)
from nixops_lab import image as images
from nixops_lab.binary_cache import contents
from nixops_lab.binary_cache.server import URL as CACHE_URL
from nixops_lab.control import Control
from nixops_lab.machines import root_filesystem
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError, say

OPERATOR_START_SECONDS = 30
POD_START_SECONDS = 90
Call = Callable[[LabPaths, argparse.Namespace], None]


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lab's own words, and the words of the command after the first `--`."""
    if "--" not in argv:
        return list(argv), []
    at = list(argv).index("--")
    return list(argv[:at]), list(argv[at + 1 :])


def parser() -> argparse.ArgumentParser:
    """Every call takes --dir."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--dir", default=argparse.SUPPRESS, help="the lab's folder (else LAB_DIR, else /var/lib/nixops-lab/default)"
    )
    top = argparse.ArgumentParser(
        prog="lab",
        description="A real Kubernetes API, a strict EC2 and real machines with sshd and Nix, on this machine only.",
    )
    top.add_argument("--dir", default=None, help=argparse.SUPPRESS)
    calls = top.add_subparsers(required=True, metavar="CALL")

    def group(name: str, text: str) -> Callable[[str, Call, str], argparse.ArgumentParser]:
        actions = calls.add_parser(name, help=text, description=text).add_subparsers(required=True, metavar="ACTION")
        return lambda action, call, help_text: add(actions, action, call, help_text)

    def add(
        to: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, call: Call, text: str
    ) -> argparse.ArgumentParser:
        made = to.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(call=call)
        return made

    start = add(
        calls, "up", up, "build what is missing, start everything, print the path of a file with the environment"
    )
    start.add_argument("--seed", type=int, default=0, help="for ids and addresses (default 0)")
    start.add_argument("--node", action="store_true", help="with a node: kubelet, containerd, scheduler")
    start.add_argument("--gitops", action="store_true", help="and Flux with a git server (compiled: 8 minutes once)")
    start.add_argument("--argocd", action="store_true", help="and Argo CD with a git server (compiled: 8 minutes once)")
    git = add(
        calls,
        "git",
        git_repository,
        "make a bare repository for Flux and Argo CD; print its path and its URL",
    )
    git.add_argument("name", metavar="NAME")
    add(calls, "env", env, 'print the environment: eval "$(lab env)"')
    add(calls, "run", run, "run -- CMD: a command with that environment, inside the lab's network")
    add(calls, "down", down, "stop everything and leave nothing running or mounted")
    add(
        calls,
        "image",
        image,
        "build or find the operator's image; print its name, archive and root file system",
    )

    operator = group("operator", "the operator, as its pod would run it")
    launch = operator("start", operator_start, "start it; -- CMD starts another program in its place")
    launch.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="one more environment variable"
    )
    launch.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting: dotted.key=YAML")
    launch.add_argument("--pod", action="store_true", help="as a pod on the lab's node: the chart, with default values")
    launch.add_argument("--values", metavar="FILE", help="with --pod: more values of the chart, as YAML")
    operator("stop", operator_stop, "SIGTERM, and wait for its end")
    operator("kill", operator_kill, "SIGKILL to it and all it started")
    operator("restart", operator_restart, "stop and start with what the last start was given")
    log = operator("log", operator_log, "print its log")
    log.add_argument("-f", "--follow", action="store_true", help="go on as it grows")

    machine = group(
        "machine", "machines, looked at from outside (not through SSH); NAME: instance id, NixMachine or given-host"
    )
    machine("list", machine_list, "name, state and addresses")
    for action, call, text in (
        ("exec", machine_exec, "exec NAME -- CMD: run a command in it as root"),
        ("kill", machine_kill, "cut its power"),
        ("start", machine_start, "switch a given host on again (an instance is EC2's to start)"),
        ("console", machine_console, "a root shell in it"),
    ):
        machine(action, call, text).add_argument("name", metavar="NAME")
    another = machine("add", machine_add, "boot one more given host, of another Debian and so with another Nix")
    another.add_argument("name", metavar="NAME")
    another.add_argument("--debian", required=True, metavar="RELEASE", help="bookworm, trixie, or forky for its Nix")

    ec2 = group("ec2", "the lab's EC2")
    ec2("log", ec2_log, "print the call log, one JSON object a line")
    ec2("set", ec2_set, "turn knobs").add_argument("pairs", nargs="+", metavar="NAME=VALUE")
    ec2("reset", ec2_reset, "knobs and faults as after `up`")

    cache = group("cache", "the binary cache and the server of sources on the lab's network")
    cache("fill", cache_fill, "give it the miniature nixpkgs' prebuilt packages, built and signed once")
    cache("log", cache_log, "print what was asked for, one JSON object a line")
    cache("set", cache_set, "turn knobs").add_argument("pairs", nargs="+", metavar="NAME=VALUE")
    cache("reset", cache_reset, "knobs as after `up`, an empty log")
    return top


def up(paths: LabPaths, given: argparse.Namespace) -> None:
    lifecycle.up(paths, given.seed, given.node)
    if given.gitops:
        gitops.start(paths)
    if given.argocd:
        argocd.start(paths)
    sys.stdout.write(f"{paths.environment}\n")


def down(paths: LabPaths, given: argparse.Namespace) -> None:
    lifecycle.down(paths)


def git_repository(paths: LabPaths, given: argparse.Namespace) -> None:
    lifecycle.running(paths)
    if not gitops.repositories(paths).is_dir():
        raise LabError("there is no git server in this lab: `lab up --gitops` or `--argocd` adds it")
    sys.stdout.write(f"{gitops.repository(paths, given.name)}\n{gitops.url(given.name)}\n")


def env(paths: LabPaths, given: argparse.Namespace) -> None:
    sys.stdout.write(environment.export_lines(paths, _variables(paths)))


def run(paths: LabPaths, given: argparse.Namespace) -> None:
    """Becomes the command: its exit status, signals and terminal are the caller's."""
    if not given.command:
        raise LabError("nothing to run: write `lab run -- COMMAND`")
    _become(inside.of_network(paths, _variables(paths), given.command))


def image(paths: LabPaths, given: argparse.Namespace) -> None:
    """Of the checkout as it is; no lab has to run."""
    prerequisites.check(paths)
    prerequisites.install_packages()
    built = images.build()
    sys.stdout.write(f"NAME={built.name}\nARCHIVE={built.archive}\nROOT={images.build_root()}\n")


def operator_start(paths: LabPaths, given: argparse.Namespace) -> None:
    launch = operator_process.Launch(
        environment=operator_process.parse_environment(given.env),
        settings=operator_process.parse_settings(given.set),
        command=tuple(given.command),
        is_pod=given.pod,
        values=_values(given.values),
    )
    if given.values and not given.pod:
        raise LabError("--values are the chart's: say --pod, too")
    _start_operator(paths, launch)


def operator_restart(paths: LabPaths, given: argparse.Namespace) -> None:
    launch = operator_process.last_launch(paths)
    if launch.is_pod:
        operator_pod.stop(paths)
    else:
        operator_process.stop(paths)
    _start_operator(paths, launch)


def operator_stop(paths: LabPaths, given: argparse.Namespace) -> None:
    if operator_process.last_launch(paths).is_pod:
        operator_pod.stop(paths)
        say("the operator's pod is gone")
    elif operator_process.running(paths) is None:
        say("the operator does not run")
    else:
        say(f"the operator ended with {operator_process.stop(paths)}")


def operator_kill(paths: LabPaths, given: argparse.Namespace) -> None:
    if operator_process.last_launch(paths).is_pod:
        say("killed; the kubelet starts it anew" if operator_pod.kill(paths) else "the operator does not run")
    else:
        say("killed" if operator_process.kill(paths) else "the operator does not run")


def operator_log(paths: LabPaths, given: argparse.Namespace) -> None:
    if operator_process.last_launch(paths).is_pod:
        _become(inside.Command(operator_pod.log_command(paths, follow=given.follow), dict(os.environ)))
    if not (paths.operator / "log").exists():
        raise LabError("the operator has not been started in this lab")
    follow = ["--follow=name"] if given.follow else []
    _become(inside.Command(["tail", "--lines=+1", *follow, str(paths.operator / "log")], dict(os.environ)))


def machine_list(paths: LabPaths, given: argparse.Namespace) -> None:
    for machine in _control(paths).machines():
        columns = (machine["name"], machine["state"], machine["private_address"], machine["public_address"] or "-")
        said = f"  {machine['last_line']}" if machine["last_line"] else ""
        sys.stdout.write("{:<22} {:<7} {:<15} {:<15}{}".format(*columns, said).rstrip() + "\n")


def machine_exec(paths: LabPaths, given: argparse.Namespace) -> None:
    if not given.command:
        raise LabError("nothing to run: write `lab machine exec NAME -- COMMAND`")
    _become(inside.of_machine(paths, _control(paths), given.name, given.command))


def machine_console(paths: LabPaths, given: argparse.Namespace) -> None:
    _become(inside.of_machine(paths, _control(paths), given.name, ["/bin/bash", "--login"]))


def machine_kill(paths: LabPaths, given: argparse.Namespace) -> None:
    control = _control(paths)
    machine = inside.machine(paths, control, given.name)
    control.cut_power(machine["name"])
    say(f"{machine['name']} is off")


def machine_start(paths: LabPaths, given: argparse.Namespace) -> None:
    control = _control(paths)
    machine = inside.machine(paths, control, given.name)
    control.switch_on(machine["name"])
    say(f"{machine['name']} is on")


def machine_add(paths: LabPaths, given: argparse.Namespace) -> None:
    """Its root file system is made first if this computer has none: a minute."""
    control = _control(paths)
    made = control.add_host(given.name, root_filesystem.build(paths.nixpkgs, given.debian))
    sys.stdout.write(f"{made['private_address']}\n")


def ec2_log(paths: LabPaths, given: argparse.Namespace) -> None:
    lifecycle.running(paths)
    if paths.ec2_log.exists():
        sys.stdout.write(paths.ec2_log.read_text())


def ec2_set(paths: LabPaths, given: argparse.Namespace) -> None:
    knobs = _control(paths).set_knobs(parse_knobs(given.pairs))
    sys.stdout.write(json.dumps(knobs, indent=1) + "\n")


def parse_knobs(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` each, the value as it stands: `*` means something to a knob, and something else in YAML."""
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise LabError(f"{pair}: write NAME=VALUE, see the table of knobs in tests/lab/README.md")
    return dict(pair.split("=", 1) for pair in pairs)


def ec2_reset(paths: LabPaths, given: argparse.Namespace) -> None:
    _control(paths).reset()


def cache_fill(paths: LabPaths, given: argparse.Namespace) -> None:
    control = _control(paths)
    folder = contents.make(paths.nixpkgs)
    control.fill_cache(folder)
    say(f"the binary cache at {CACHE_URL} has {len(list(folder.glob('*.narinfo')))} paths")


def cache_log(paths: LabPaths, given: argparse.Namespace) -> None:
    for entry in _control(paths).cache_log():
        sys.stdout.write(json.dumps(entry) + "\n")


def cache_set(paths: LabPaths, given: argparse.Namespace) -> None:
    knobs = _control(paths).set_cache(parse_knobs(given.pairs))
    sys.stdout.write(json.dumps(knobs, indent=1) + "\n")


def cache_reset(paths: LabPaths, given: argparse.Namespace) -> None:
    _control(paths).reset_cache()


def _variables(paths: LabPaths) -> dict[str, str]:
    return environment.variables(paths, lifecycle.running(paths), identities.load(paths))


def _control(paths: LabPaths) -> Control:
    return Control(_variables(paths)["LAB_CONTROL_URL"])


def _start_operator(paths: LabPaths, launch: operator_process.Launch) -> None:
    lab = lifecycle.running(paths)
    if launch.is_pod:
        _start_pod(paths, lab, launch)
        return
    if operator_process.last_launch(paths).is_pod:
        operator_pod.stop(paths)
    cluster.install_changes(paths)
    pid = operator_process.start(paths, lab, launch)
    if not launch.command and not operator_process.await_answer(paths, lab, OPERATOR_START_SECONDS):
        say(f"it runs, but its health port does not answer after {OPERATOR_START_SECONDS} s")
    say(f"the operator runs (pid {pid}); its log is {paths.operator / 'log'}")


def _start_pod(paths: LabPaths, lab: state.State, launch: operator_process.Launch) -> None:
    if operator_process.running(paths) is not None:
        raise LabError("the operator runs as a process; `lab operator stop` ends it")
    operator_process.prepare(paths)
    operator_process.remember(paths, launch)
    pod = operator_pod.start(paths, lab, launch)
    if not operator_pod.await_ready(paths, pod, POD_START_SECONDS):
        say(f"it runs, but is not ready after {POD_START_SECONDS} s")
    say(f"the operator runs as pod {pod} in {operator_process.NAMESPACE}")


def _values(file: str | None) -> dict[str, object]:
    return dict(yaml.safe_load(Path(file).read_text()) or {}) if file else {}


def _become(command: inside.Command) -> NoReturn:
    """The program takes this process over."""
    os.execvpe(command.argv[0], command.argv, command.variables)  # noqa: S606 - a list, no shell


def main(argv: Sequence[str]) -> int:
    own, command = split(argv)
    given = parser().parse_args(own)
    given.command = command
    # `down` of a terminal or of a supervisor: the same way out as Ctrl-C, so that an unfinished `up` clears up after
    # itself.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        given.call(LabPaths.of(given.dir), given)
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("lab: interrupted\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
