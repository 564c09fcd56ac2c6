"""Settings: one file, variables over it, and no key that is not known."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pydantic
import pytest

from nixops_operator import settings


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

    assert (chosen.resync_period, chosen.workers, chosen.hosts.allowed_cidrs) == (timedelta(seconds=60), 8, ())


def test_the_file_is_camel_case(config):
    config.write_text("resyncPeriod: 1m30s\nec2: {sweepPeriod: 5s}\nhosts: {allowedCidrs: [192.0.2.0/24]}\n")

    chosen = settings.load()

    assert (chosen.resync_period, chosen.ec2.sweep_period) == (timedelta(seconds=90), timedelta(seconds=5))
    assert [str(network) for network in chosen.hosts.allowed_cidrs] == ["192.0.2.0/24"]


def test_a_variable_wins_over_the_file(config, monkeypatch):
    config.write_text("resyncPeriod: 5m\nnix: {maxJobs: 1}\n")
    monkeypatch.setenv("NIXOPS_RESYNC_PERIOD", "5s")
    monkeypatch.setenv("NIXOPS_NIX__MAX_JOBS", "4")

    chosen = settings.load()

    assert (chosen.resync_period, chosen.nix.max_jobs) == (timedelta(seconds=5), 4)


def test_variables_of_others_mean_nothing(config, monkeypatch):
    config.write_text("workers: 3\n")
    for name in ("WORKERS", "workers", "LOG", "RESYNCPERIOD", "CLUSTERID"):
        monkeypatch.setenv(name, "2")

    chosen = settings.load()

    assert (chosen.workers, chosen.cluster_id, chosen.resync_period) == (3, None, timedelta(seconds=60))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("resyncPerod: 5s\n", "resyncPerod", id="a misspelt key"),
        pytest.param("ec2: {sweep: 5s}\n", "sweep", id="a misspelt key further in"),
        pytest.param("resyncPeriod: 5 minutes\n", "resyncPeriod", id="no duration"),
        pytest.param("workers: 0\n", "workers", id="nobody to work"),
        pytest.param("hosts: {allowedCidrs: [192.0.2.0/33]}\n", "allowedCidrs", id="no network"),
    ],
)
def test_what_is_wrong_is_named(config, text, named):
    config.write_text(text)

    with pytest.raises(pydantic.ValidationError, match=named):
        settings.load()


def test_a_file_that_is_not_there_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NIXOPS_CONFIG", str(tmp_path / "nowhere.yaml"))

    with pytest.raises(FileNotFoundError, match="NIXOPS_CONFIG"):
        settings.load()
