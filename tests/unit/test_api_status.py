"""Parts of a status that were damaged by hand, where the API server's schema cannot tell."""

from __future__ import annotations

import pytest

from nixops_operator.api.status import ReplacementStatus, StopStatus, VolumeStatus, read

DAMAGED = ["", "{", "gp3", "\ud800"]


@pytest.mark.parametrize("text", [*DAMAGED, "[]", "7", "null"])
def test_a_record_whose_json_is_damaged_is_no_record(text):
    assert read(VolumeStatus, {"name": "data", "volumeId": "vol-1", "settings": text}) is None
    assert read(StopStatus, {"instanceId": "i-1", "wanted": text}) is None
    assert read(ReplacementStatus, {"attempt": 2, "wanted": text}) is None


@pytest.mark.parametrize("text", DAMAGED)
def test_a_way_back_that_is_damaged_is_no_record(text):
    former = [{"field": "instanceType", "value": text}]

    assert read(StopStatus, {"instanceId": "i-1", "wanted": "{}", "former": former}) is None


def test_whole_records_are_read():
    former = [{"field": "instanceType", "value": '"t3.micro"'}]

    assert read(StopStatus, {"instanceId": "i-1", "wanted": "{}", "former": former}) is not None
    assert read(ReplacementStatus, {"attempt": 2, "wanted": '{"image": "ami-1"}'}) is not None
    assert read(VolumeStatus, {"name": "data"}) is not None
