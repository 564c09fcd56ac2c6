"""The EC2 query protocol: form parameters to nested values, nested values to XML.

Names and types come from botocore's description of EC2, so that values here look as boto3's callers know them.
"""

import base64
import binascii
import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree as ET

import botocore.session
from botocore.model import OperationModel, ServiceModel, Shape

from nixops_lab.ec2.errors import Ec2Error, invalid, missing

NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"

Tree = dict[str, Any] | str


@functools.cache
def service_model() -> ServiceModel:
    """botocore's model of EC2."""
    return botocore.session.get_session().get_service_model("ec2")


def operation_model(name: str) -> OperationModel:
    """Raises `InvalidAction` for a name that EC2 does not have."""
    if name not in service_model().operation_names:
        raise Ec2Error("InvalidAction", f"The action {name} is not valid for this web service.")
    return service_model().operation_model(name)


def parse(operation: OperationModel, form: Mapping[str, str]) -> dict[str, Any]:
    """The parameters as boto3 names and nests them; unknown and missing ones are refused as EC2 does."""
    tree: dict[str, Any] = {}
    for name, value in form.items():
        if name in {"Action", "Version"}:
            continue
        node = tree
        *parents, last = name.split(".")
        for part in parents:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise Ec2Error("UnknownParameter", f"The parameter {name} is not recognized")
            node = child
        node[last] = value
    if operation.input_shape is None:
        return {}
    parsed = _parse(operation.input_shape, tree, "")
    assert isinstance(parsed, dict)
    return parsed


def _query_name(member: Shape, name: str) -> str:
    if query_name := member.serialization.get("queryName"):
        return str(query_name)
    if located := member.serialization.get("name"):
        return str(located[0].upper() + located[1:])
    return name


def _parse(shape: Shape, tree: Tree, path: str) -> Any:
    match shape.type_name:
        case "structure":
            return _parse_structure(shape, tree, path)
        case "list":
            return _parse_list(shape, tree, path)
    if not isinstance(tree, str):
        raise Ec2Error("UnknownParameter", f"The parameter {path} is not recognized")
    return _parse_scalar(shape, tree, path)


def _parse_structure(shape: Any, tree: Tree, path: str) -> dict[str, Any]:
    if isinstance(tree, str):
        if tree == "":
            return {}
        raise Ec2Error("UnknownParameter", f"The parameter {path} is not recognized")
    left = dict(tree)
    result = {}
    for name, member in shape.members.items():
        query_name = _query_name(member, name)
        if query_name in left:
            result[name] = _parse(member, left.pop(query_name), f"{path}.{query_name}".lstrip("."))
    if left:
        raise Ec2Error("UnknownParameter", f"The parameter {f'{path}.{min(left)}'.lstrip('.')} is not recognized")
    for name in shape.required_members:
        if name not in result:
            raise missing(f"{path}.{_query_name(shape.members[name], name)}".lstrip("."))
    return result


def _parse_list(shape: Any, tree: Tree, path: str) -> list[Any]:
    if isinstance(tree, str):
        if tree == "":
            return []
        raise Ec2Error("UnknownParameter", f"The parameter {path} is not recognized")
    try:
        positions = sorted(tree, key=int)
    except ValueError:
        raise Ec2Error("UnknownParameter", f"The parameter {path}.{min(tree)} is not recognized") from None
    return [_parse(shape.member, tree[position], f"{path}.{position}") for position in positions]


def _parse_scalar(shape: Shape, text: str, path: str) -> Any:
    try:
        match shape.type_name:
            case "boolean":
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            case "integer" | "long":
                return int(text)
            case "double" | "float":
                return float(text)
            case "blob":
                return base64.b64decode(text, validate=True)
            case _:
                return text
    except (KeyError, ValueError, binascii.Error):
        raise invalid(f"Invalid value '{text}' for {path}") from None


def _document(root: ET.Element) -> bytes:
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True))


def write(operation: OperationModel, result: Mapping[str, Any], request_id: str) -> bytes:
    """The reply's XML. `result` has boto3's names; absent and None members are left out."""
    root = ET.Element(f"{operation.name}Response", {"xmlns": NAMESPACE})
    ET.SubElement(root, "requestId").text = request_id
    if operation.output_shape is None:
        ET.SubElement(root, "return").text = "true"
    else:
        _write_members(root, operation.output_shape, result)
    return _document(root)


def _write_members(parent: ET.Element, shape: Any, value: Mapping[str, Any]) -> None:
    for name, member_value in value.items():
        member = shape.members[name]  # a KeyError here is a mistake of ours, never of the caller
        if member_value is not None:
            _write(ET.SubElement(parent, member.serialization.get("name", name)), member, member_value)


def _write(element: ET.Element, shape: Any, value: Any) -> None:
    match shape.type_name:
        case "structure":
            _write_members(element, shape, value)
        case "list":
            for item in value:
                _write(ET.SubElement(element, shape.member.serialization.get("name", "item")), shape.member, item)
        case "boolean":
            element.text = "true" if value else "false"
        case "timestamp":
            element.text = timestamp(value)
        case "blob":
            element.text = base64.b64encode(value).decode()
        case _:
            element.text = str(value)


def timestamp(seconds: float) -> str:
    """Seconds since 1970 as EC2 writes them, with milliseconds that are always zero."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def write_error(error: Ec2Error, request_id: str) -> bytes:
    """EC2's form of an error reply."""
    root = ET.Element("Response")
    entry = ET.SubElement(ET.SubElement(root, "Errors"), "Error")
    ET.SubElement(entry, "Code").text = error.code
    ET.SubElement(entry, "Message").text = error.message
    ET.SubElement(root, "RequestID").text = request_id
    return _document(root)


def write_query_error(error: Ec2Error, request_id: str) -> bytes:
    """The form that STS, IAM and other query services have instead."""
    root = ET.Element("ErrorResponse")
    entry = ET.SubElement(root, "Error")
    ET.SubElement(entry, "Type").text = "Sender"
    ET.SubElement(entry, "Code").text = error.code
    ET.SubElement(entry, "Message").text = error.message
    ET.SubElement(root, "RequestId").text = request_id
    return _document(root)


def error_code(body: bytes) -> str | None:
    """The code in an error reply of either form, None where there is none."""
    try:
        root = ET.fromstring(body)  # noqa: S314 - our own moto's reply
    except ET.ParseError:
        return None
    return next((element.text for element in root.iter() if element.tag.rpartition("}")[2] == "Code"), None)
