"""The policy that the documentation gives away allows exactly the calls of EC2 that the operator makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import botocore.session
from botocore import xform_name

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "docs/reference/iam-policy.json"
ADAPTER = ROOT / "operator/nixops_operator/adapters/aws"


def called() -> set[str]:
    """Every operation of EC2 whose method boto3 has, and the adapter names."""
    model = botocore.session.get_session().get_service_model("ec2")
    operations = {xform_name(name): name for name in model.operation_names}
    source = "".join(path.read_text() for path in ADAPTER.glob("*.py"))
    source += "".join(
        f"\n{begin}{direction}"
        for begin in re.findall(r'f"([a-z_]+)\{direction', source)
        for direction in ("ingress", "egress")
    )
    return {operations[word] for word in re.findall("[a-z_]+", source) if word in operations}


def test_the_policy_allows_what_is_called_and_nothing_else():
    statements = json.loads(POLICY.read_text())["Statement"]
    allowed = [
        action
        for each in statements
        for action in ([each["Action"]] if isinstance(each["Action"], str) else each["Action"])
    ]

    assert sorted(allowed) == sorted({*(f"ec2:{name}" for name in called()), "iam:PassRole"})
    assert "ec2:AuthorizeSecurityGroupIngress" in allowed


def test_each_statement_is_explained_where_the_policy_is_handed_out():
    page = (ROOT / "docs/how-to/aws-credentials.md").read_text()

    assert [each["Sid"] for each in json.loads(POLICY.read_text())["Statement"] if f"`{each['Sid']}`" not in page] == []
