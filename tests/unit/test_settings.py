"""Settings: one file, variables over it, and no key that is not known."""

from __future__ import annotations

from datetime import timedelta
from fnmatch import fnmatch
from ipaddress import ip_address
from pathlib import Path

import pytest

from nixops_operator import composition, settings
from nixops_operator.adapters.nix.sandboxed_nix import BuildLimits
from nixops_operator.api.machine_spec import BuildOn


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that NIXOPS_CONFIG names; empty."""
    file = tmp_path / "config.yaml"
    file.write_text("{}")
    monkeypatch.setenv("NIXOPS_CONFIG", str(file))
    return file


def test_without_a_file_the_defaults_hold(monkeypatch):
    monkeypatch.delenv("NIXOPS_CONFIG", raising=False)

    chosen = settings.load()

    assert (chosen.resync_period, chosen.workers, chosen.hosts.allowed_cidrs) == (timedelta(seconds=60), 16, ())


def test_the_file_is_camel_case(config):
    config.write_text("resyncPeriod: 1m30s\nec2: {sweepPeriod: 5s}\nhosts: {allowedCidrs: [192.0.2.0/24]}\n")

    chosen = settings.load()

    assert (chosen.resync_period, chosen.ec2.sweep_period) == (timedelta(seconds=90), timedelta(seconds=5))
    assert [str(network) for network in chosen.hosts.allowed_cidrs] == ["192.0.2.0/24"]


@pytest.mark.parametrize("key", ["on", "'on'", "'true'"], ids=["as YAML 1.1 reads it", "quoted", "as Helm hands it on"])
def test_where_systems_are_built_may_be_written_without_quotes(config, key):
    config.write_text(f"nix: {{build: {{{key}: Target}}}}\n")

    assert settings.load().nix.build.on is BuildOn.TARGET


def test_a_variable_wins_over_the_file(config, monkeypatch):
    config.write_text("resyncPeriod: 5m\nnix: {build: {maxJobs: 1}}\n")
    monkeypatch.setenv("NIXOPS_RESYNC_PERIOD", "5s")
    monkeypatch.setenv("NIXOPS_NIX__BUILD__MAX_JOBS", "4")

    chosen = settings.load()

    assert (chosen.resync_period, chosen.nix.build.max_jobs) == (timedelta(seconds=5), 4)


def test_variables_of_others_mean_nothing(config, monkeypatch):
    config.write_text("workers: 3\n")
    for name in ("WORKERS", "workers", "LOG", "RESYNCPERIOD", "CLUSTERID"):
        monkeypatch.setenv(name, "2")

    chosen = settings.load()

    assert (chosen.workers, chosen.cluster_id, chosen.resync_period) == (3, None, timedelta(seconds=60))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("resyncPerod: 5s\n", "there is no such setting; did you mean resyncPeriod?", id="a misspelt key"),
        pytest.param("ec2: {sweep: 5s}\n", "did you mean ec2.sweepPeriod?", id="a misspelt key further in"),
        pytest.param("nix: {maxJobs: 2}\n", "did you mean nix.build.maxJobs?", id="a key that is elsewhere now"),
        pytest.param("nix: {copyConcurrency: 2}\n", "did you mean nix.copy.concurrency?", id="another"),
        pytest.param("zzz: 1\n", "zzz: there is no such setting", id="like nothing"),
        pytest.param("resyncPeriod: 5 minutes\n", "resyncPeriod: ", id="no duration"),
        pytest.param("ec2: {sweepPeriod: 0}\n", "ec2.sweepPeriod: .*with its unit", id="a period without a unit"),
        pytest.param("hosts: {factsPeriod: 0s}\n", "hosts.factsPeriod: ", id="a period that never waits"),
        pytest.param("workers: 0\n", "workers: ", id="nobody to work"),
        pytest.param("nix: {evaluation: {memory: -1}}\n", "nix.evaluation.memory: ", id="less than no memory"),
        pytest.param("hosts: {allowedCidrs: [192.0.2.0/33]}\n", "hosts.allowedCidrs", id="no network"),
        pytest.param("hosts: {allowedPorts: [0]}\n", "hosts.allowedPorts", id="no port"),
        pytest.param("watch: {namespaces: ['team-*']}\n", "watch.namespaces", id="a pattern of namespaces"),
        pytest.param("watch: {namespaces: shop}\n", "watch.namespaces", id="one namespace, not in a list"),
        pytest.param(
            "ec2: {defaultImage: {owner: 427812963091}}\n", "ec2.defaultImage.owner", id="a number for a text"
        ),
        pytest.param("workers: [\n", "config.yaml", id="no YAML"),
        pytest.param("- workers\n", "config.yaml", id="no settings at all"),
    ],
)
def test_what_is_wrong_is_named(config, text, told):
    config.write_text(text)

    with pytest.raises(settings.Refused, match=told):
        settings.load()


def test_all_that_is_wrong_is_named_at_once(config):
    config.write_text("workers: 0\nresyncPerod: 5s\n")

    with pytest.raises(settings.Refused) as refused:
        settings.load()

    assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == ["workers", "resyncPerod"]


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        pytest.param("NIXOPS_RESYNC_PEROD", "5s", "did you mean NIXOPS_RESYNC_PERIOD?", id="a slip"),
        pytest.param(
            "NIXOPS_NIX__BUILD__MAX_JOB", "2", "nix.build.maxJob: .*did you mean nix.build.maxJobs?", id="further in"
        ),
        pytest.param("NIXOPS_WORKERS", "many", "workers: ", id="no number"),
        pytest.param("NIXOPS_HOSTS__ALLOWED_CIDRS", "192.0.2.0/24", "hosts", id="a list that is no JSON"),
    ],
)
def test_a_wrong_variable_is_named(config, monkeypatch, variable, value, told):
    monkeypatch.setenv(variable, value)

    with pytest.raises(settings.Refused, match=told):
        settings.load()


@pytest.mark.parametrize(
    "variable",
    [
        pytest.param("NIXOPS_OPERATOR_SERVICE_HOST", id="of a Service"),
        pytest.param("NIXOPS_OPERATOR_PORT", id="of a Service, shorter"),
        pytest.param("NIXOPS_STATE", id="of NixOps"),
    ],
)
def test_variables_that_only_begin_alike_are_somebody_else_s(config, monkeypatch, variable):
    monkeypatch.setenv(variable, "tcp://10.0.0.1:8080")

    assert settings.load() == settings.Settings()


def test_every_setting_has_a_variable(config, monkeypatch):
    names = dict.fromkeys(settings.variable_name(name) for name in settings._names(settings.Settings))
    assert {"NIXOPS_NIX__BUILD__MAX_JOBS", "NIXOPS_NIX__COPY__STALL", "NIXOPS_CLUSTER_ID"} <= set(names)
    monkeypatch.setenv("NIXOPS_NIX__COPY__STALL", "90s")
    monkeypatch.setenv("NIXOPS_EC2__DEFAULT_IMAGE__NAME", "mine*")

    chosen = settings.load()

    assert (chosen.nix.copies.stall, chosen.ec2.default_image.name) == (timedelta(seconds=90), "mine*")


@pytest.mark.parametrize("system", ["x86_64-linux", "aarch64-linux"])
def test_the_default_image_is_found_for_every_architecture(config, system):
    """The name as the NixOS project gives it; which architecture counts is asked of EC2 beside it."""
    assert fnmatch(f"nixos/25.11.650.8bb5646e0bed-{system}", settings.load().ec2.default_image.name)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "fd00:ec2::254"])
def test_no_machine_lies_where_the_operator_itself_or_its_node_is_met(config, address):
    assert any(ip_address(address) in network for network in settings.load().hosts.denied_cidrs)


def test_limits_of_builds_reach_the_builder(config):
    """A setting that is declared and reaches nobody would be believed."""
    config.write_text("nix: {build: {memory: 1, processes: 2, freeDisk: 3, maxJobs: 4, timeout: 5s, silent: 6s}}\n")

    limits = composition.build_limits(settings.load().nix.build)

    assert (limits.memory, limits.processes, limits.disk, limits.max_jobs) == (1, 2, 3, 4)
    assert (limits.timeout, limits.silent) == (timedelta(seconds=5), timedelta(seconds=6))


def test_the_defaults_of_builds_are_those_of_the_builder(config):
    assert composition.build_limits(settings.load().nix.build) == BuildLimits()


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("20Gi", 20 * 1024**3),
        ("1.5Gi", 3 * 1024**3 // 2),
        ("3G", 3 * 10**9),
        ("512Mi", 512 * 1024**2),
        ("'7'", 7),
        ("7", 7),
    ],
)
def test_sizes_are_written_as_kubernetes_writes_them(config, written, count):
    config.write_text(f"nix: {{store: {{maxSize: {written}}}}}\n")

    assert composition.store_limits(settings.load().nix.store).max_size == count


def test_every_number_of_bytes_is_a_size(config):
    """`memory: 4Gi` was refused beside `minFree: 4Gi`."""
    config.write_text(
        "nix: {evaluation: {memory: 4Gi, disk: 1Gi}, build: {memory: 2Gi, freeDisk: 3Gi},"
        " sources: {compressed: 5Gi, unpacked: 6Gi}}\n"
    )
    nix = settings.load().nix

    assert (nix.evaluation.memory, nix.evaluation.disk) == (4 * 1024**3, 1024**3)
    assert (nix.build.memory, nix.build.free_disk) == (2 * 1024**3, 3 * 1024**3)
    assert (nix.sources.compressed, nix.sources.unpacked) == (5 * 1024**3, 6 * 1024**3)


@pytest.mark.parametrize("written", ["20GB", "-1", "0", "Gi", "1e3", '""'])
def test_what_is_no_size_is_refused(config, written):
    config.write_text(f"nix: {{store: {{maxSize: {written}}}}}\n")

    with pytest.raises(settings.Refused, match=r"nix\.store\.maxSize"):
        settings.load()


def test_a_store_is_not_collected_to_less_room_than_it_is_to_have(config):
    config.write_text("nix: {store: {minFree: 20Gi}}\n")

    limits = composition.store_limits(settings.load().nix.store)
    assert (limits.min_free, limits.max_free) == (20 * 1024**3, 20 * 1024**3)


def test_hosts_are_reached_by_ssh_s_own_port_unless_the_administrator_says_more(config):
    assert settings.load().hosts.allowed_ports == (22,)
    config.write_text("hosts: {allowedPorts: [22, 2222]}\n")

    assert settings.load().hosts.allowed_ports == (22, 2222)


def test_a_file_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NIXOPS_CONFIG", str(tmp_path / "nowhere.yaml"))

    with pytest.raises(FileNotFoundError, match="NIXOPS_CONFIG"):
        settings.load()
