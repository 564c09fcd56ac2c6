"""From EC2's error codes to what the caller does next: one table, and what a failed connection means.

Codes: EC2 API Reference, "Error codes for the Amazon EC2 API"; IAM User Guide, "Common errors". Texts hold the code and
AWS' own words without request ids, encoded blobs and clocks: the text becomes a condition's message, which must stay
the same from one attempt to the next.
"""

from __future__ import annotations

import difflib
import functools
import re
import ssl
from collections.abc import Callable
from datetime import timedelta

import botocore.session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProxyConnectionError,
    SSLError,
)

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import (
    Blocked,
    InvalidSpec,
    Lost,
    NamesNothing,
    NotOffered,
    OperatorError,
    OutcomeUnknown,
    Retry,
)

Answer = Callable[[str], OperatorError]
"""Makes the error of a text for people."""

CAPACITY_PAUSE = timedelta(seconds=30)
"""Capacity comes back within minutes, not seconds; assumed."""
DEPENDENCY_PAUSE = timedelta(seconds=5)
"""A network interface lets go of its groups some seconds after its instance is terminated."""
UNKNOWN_CODE_PAUSE = timedelta(seconds=30)
CAUSES_LOOKED_AT = 4
"""botocore's SSLError holds urllib3's, which holds the one of Python's ssl."""


def _retry(reason: Reason, after: timedelta | None = None) -> Answer:
    return lambda text: Retry(reason, text, after)


def _blocked(reason: Reason) -> Answer:
    return lambda text: Blocked(reason, text)


def _lost(reason: Reason) -> Answer:
    return lambda text: Lost(reason, text)


def _field(name: str) -> Answer:
    return lambda text: InvalidSpec(f"spec.target.ec2.{name}", text)


def _named_by(name: str) -> Answer:
    return lambda text: NamesNothing(f"spec.target.ec2.{name}", text)


def _too_many_groups(text: str) -> OperatorError:
    # Amazon VPC User Guide, "Amazon VPC quotas": 5 by default, 16 at most.
    message = f"spec.target.ec2.securityGroups: {text}; name fewer, or have that quota of the account raised"
    return Blocked(Reason.QUOTA_EXCEEDED, message)


_THROTTLED = _retry(Reason.THROTTLED)
_CAPACITY = _retry(Reason.INSUFFICIENT_CAPACITY, CAPACITY_PAUSE)
_REFUSED_WITH_5XX = (_THROTTLED, _CAPACITY)
_UNKNOWN_CODE = _retry(Reason.PROGRESSING_WITH_RETRY, UNKNOWN_CODE_PAUSE)
_QUOTA = _blocked(Reason.QUOTA_EXCEEDED)
_DENIED = _blocked(Reason.ACCESS_DENIED)
_AUTH = _blocked(Reason.AUTH_FAILURE)
_IMAGE = _blocked(Reason.IMAGE_NOT_FOUND)
_TYPE = _field("instanceType")
_INVALID = _blocked(Reason.INVALID_SPEC)
_IN_USE = _retry(Reason.DELETING, DEPENDENCY_PAUSE)
# An id that was given out a moment ago may be unknown for some minutes: EC2 Developer Guide, "Eventual consistency in
# the Amazon EC2 API". Whether the object is gone is the caller's question.
_NOT_FOUND = _retry(Reason.NOT_FOUND)

ANSWERS: dict[str, Answer] = {
    "RequestLimitExceeded": _THROTTLED,
    "EC2ThrottledException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "InsufficientInstanceCapacity": _CAPACITY,
    "InsufficientCapacity": _CAPACITY,
    "InsufficientHostCapacity": _CAPACITY,
    "InsufficientReservedInstanceCapacity": _CAPACITY,
    "InsufficientFreeAddressesInSubnet": _CAPACITY,
    "InsufficientAddressCapacity": _CAPACITY,
    "InsufficientVolumeCapacity": _CAPACITY,
    "UnfulfillableCapacity": _CAPACITY,
    "ReservationCapacityExceeded": _CAPACITY,
    "VcpuLimitExceeded": _QUOTA,
    "InstanceLimitExceeded": _QUOTA,
    "MaxSpotInstanceCountExceeded": _QUOTA,
    "SecurityGroupLimitExceeded": _QUOTA,
    "RulesPerSecurityGroupLimitExceeded": _QUOTA,
    "SecurityGroupsPerInterfaceLimitExceeded": _too_many_groups,
    "SecurityGroupsPerInstanceLimitExceeded": _too_many_groups,
    "ResourceLimitExceeded": _QUOTA,
    "TagLimitExceeded": _QUOTA,
    "VolumeLimitExceeded": _QUOTA,
    "VolumeInUse": _retry(Reason.PENDING, DEPENDENCY_PAUSE),
    "AttachmentLimitExceeded": _QUOTA,
    "InvalidVolume.ZoneMismatch": _INVALID,
    "UnknownVolumeType": _INVALID,
    "VolumeModificationSizeLimitExceeded": _QUOTA,
    # Four modifications within 24 h, or one within 6 h: EBS User Guide, "Requirements for EBS volume modifications".
    "VolumeModificationRateExceeded": _QUOTA,
    "IncorrectModificationState": _retry(Reason.PENDING, DEPENDENCY_PAUSE),
    "InvalidVolume.NotFound": _NOT_FOUND,
    "InvalidSnapshot.NotFound": _field("volumes"),
    "InvalidSnapshotID.Malformed": _field("volumes"),
    "InvalidBlockDeviceMapping": _field("rootVolume"),
    "UnauthorizedOperation": _DENIED,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "OptInRequired": _DENIED,
    "PendingVerification": _DENIED,
    "Blocked": _DENIED,
    "AuthFailure": _AUTH,
    "InvalidClientTokenId": _AUTH,
    "UnrecognizedClientException": _AUTH,
    "SignatureDoesNotMatch": _AUTH,
    "IncompleteSignature": _AUTH,
    "MissingAuthenticationToken": _AUTH,
    "RequestExpired": _AUTH,
    "ExpiredToken": _blocked(Reason.EXPIRED),
    "ExpiredTokenException": _blocked(Reason.EXPIRED),
    "IncorrectInstanceState": _retry(Reason.PENDING, DEPENDENCY_PAUSE),
    "IncorrectState": _retry(Reason.PENDING, DEPENDENCY_PAUSE),
    "DependencyViolation": _IN_USE,
    "InvalidGroup.InUse": _IN_USE,
    "InvalidInstanceID.NotFound": _NOT_FOUND,
    "InvalidGroup.NotFound": _NOT_FOUND,
    "InvalidGroupId.NotFound": _NOT_FOUND,
    "InvalidSecurityGroupRuleId.NotFound": _NOT_FOUND,
    "InvalidPermission.NotFound": _NOT_FOUND,
    "InvalidKeyPair.NotFound": _NOT_FOUND,
    "InvalidID": _NOT_FOUND,
    "InvalidAMIID.NotFound": _IMAGE,
    "InvalidAMIID.Unavailable": _IMAGE,
    "InvalidAMIID.Malformed": _IMAGE,
    "InvalidInstanceType": _TYPE,
    "Unsupported": _TYPE,
    "UnsupportedOperation": _TYPE,
    "InvalidSubnetID.NotFound": _field("subnetId"),
    "InvalidSubnetID.Malformed": _field("subnetId"),
    "InstanceCreditSpecification.NotSupported": _field("credits"),
    "InvalidPlacementGroup.Unknown": _named_by("placementGroup"),
    "InvalidAllocationID.NotFound": _NOT_FOUND,
    "InvalidIPAddress.InUse": _IN_USE,
    "Resource.AlreadyAssociated": _blocked(Reason.ADOPTION_CONFLICT),
    "InvalidVpcID.NotFound": _INVALID,
    "InvalidKeyPair.Format": _INVALID,
    "InvalidKey.Format": _INVALID,
    "MissingParameter": _INVALID,
    "InvalidKeyPair.Duplicate": _blocked(Reason.ADOPTION_CONFLICT),
    "InvalidGroup.Duplicate": _blocked(Reason.ADOPTION_CONFLICT),
    "OperationNotPermitted": _blocked(Reason.CHANGE_FORBIDDEN),
    "CannotDelete": _blocked(Reason.CHANGE_FORBIDDEN),
    "IdempotentInstanceTerminated": _lost(Reason.TERMINATED),
    "IdempotentParameterMismatch": _lost(Reason.LAUNCH_AMBIGUOUS),
}

# What the request names beside the instance.
_OF_GROUPS = (
    "InvalidGroup.NotFound",
    "InvalidGroupId.NotFound",
    "InvalidGroupId.Malformed",
    "InvalidSecurityGroupID.NotFound",
)

ANSWERS_OF: dict[str, dict[str, Answer]] = {
    "RunInstances": {
        **dict.fromkeys(_OF_GROUPS, _blocked(Reason.SECURITY_GROUP_NOT_READY)),
        "InvalidKeyPair.NotFound": _blocked(Reason.KEY_PAIR_NOT_READY),
    },
    "ModifyInstancePlacement": {"IncorrectInstanceState": _retry(Reason.STOPPING, DEPENDENCY_PAUSE)},
    "ModifyInstanceAttribute": {
        # One that was deleted by hand a moment ago: the next look shows that, and which group takes its place.
        **dict.fromkeys(_OF_GROUPS, _retry(Reason.SECURITY_GROUP_NOT_READY)),
        "IncorrectInstanceState": _retry(Reason.STOPPING, DEPENDENCY_PAUSE),
    },
    # "The pending instance 'i-…' is not in a valid state for this operation."
    "AssociateAddress": {"InvalidInstanceID": _retry(Reason.PENDING, DEPENDENCY_PAUSE)},
    "RebootInstances": {"IncorrectInstanceState": _retry(Reason.STOPPING, DEPENDENCY_PAUSE)},
    "DeleteVolume": {"VolumeInUse": _IN_USE},
    "StartInstances": {"IncorrectInstanceState": _retry(Reason.STOPPING, DEPENDENCY_PAUSE)},
}
"""Operation → code → what it means there, before what it means everywhere."""

_FIELD_OF_WORDS = (
    ("user data", "userDataExtra"),
    ("security group", "securityGroups"),
    ("subnet", "subnetId"),
    ("tenancy", "tenancy"),
    ("placement", "placementGroup"),
    ("credit", "credits"),
    ("iops", "rootVolume"),
    ("throughput", "rootVolume"),
    ("volume", "rootVolume"),
    ("tag", "tags"),
)
"""What AWS' words for a refused launch speak of → the field of target.ec2; the first counts. A launch is one call for
all fields, and its codes name none."""

_OWN_WORDS = {
    # AWS' words for these hold clocks, or parts of the signed request.
    "RequestExpired": "the request was too old when it arrived; compare the clocks of operator and AWS",
    "SignatureDoesNotMatch": "the secret access key does not belong to the access key id, or the clock is wrong",
    "IncompleteSignature": "the credentials are malformed",
}

_CHANGING = (
    re.compile(r"\s*Encoded authorization failure message:.*", re.DOTALL),
    re.compile(r"\s*[(\[]?(?:Service: [^;)]*; )?Request ?ID:? [0-9a-fA-F-]+[)\]]?", re.IGNORECASE),
)


def from_client_error(error: ClientError, operation: str, *, is_write: bool) -> OperatorError:
    """What EC2's refusal of `operation` (`RunInstances`) means. A 5xx on a write says nothing about its outcome, but
    throttling and missing capacity, which EC2 answers with 503 and 500."""
    details = error.response.get("Error", {})
    code = str(details.get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    text = f"{operation}: {code}: {_for_people(code, str(details.get('Message', '')))}"
    answer = _answer(code, str(details.get("Message", "")), operation)
    if answer is None and status == 429:
        answer = _THROTTLED
    if answer is None and (status >= 500 or not code):
        return unusable_reply(text, is_write=is_write)
    if answer is None:
        answer = _DENIED if status == 403 else _UNKNOWN_CODE
    told = answer(text)
    return told.as_refusal() if status < 500 or answer in _REFUSED_WITH_5XX else told


def _answer(code: str, message: str, operation: str) -> Answer | None:
    if code == "AuthFailure" and "image" in message.lower():
        return _IMAGE  # RunInstances with an image that is not shared with the account
    if code == "Unsupported" and operation == "RunInstances" and "availability zone" in message.lower():
        # Its words: "… instance type (t3.micro) is not supported in your requested Availability Zone (us-east-1e)."
        return lambda text: NotOffered("spec.target.ec2.instanceType", text)
    if code == "InvalidParameterValue" and "instance type" in message.lower():
        return _TYPE
    if code == "InvalidParameterValue" and "iam instance profile" in message.lower():
        # Also one that IAM made a moment ago: IAM User Guide, "Changes that I make are not always immediately visible".
        return _named_by("instanceProfile")
    known = ANSWERS_OF.get(operation, {}).get(code) or ANSWERS.get(code)
    if known is not None:
        return known
    if operation == "RunInstances" and code.startswith("InvalidParameter"):
        return next((_field(name) for words, name in _FIELD_OF_WORDS if words in message.lower()), _INVALID)
    if code.startswith(("Throttling", "RequestThrottled")):
        return _THROTTLED
    if code.endswith("LimitExceeded"):
        return _QUOTA  # `AddressLimitExceeded` and the like; `RequestLimitExceeded` stands in the table
    if code.startswith("InvalidParameter") or code.endswith(".Malformed"):
        return _INVALID
    return None


def _for_people(code: str, message: str) -> str:
    if code in _OWN_WORDS:
        return _OWN_WORDS[code]
    for pattern in _CHANGING:
        message = pattern.sub("", message)
    return " ".join(message.split()) or "no explanation given"


def unusable_reply(text: str, *, is_write: bool) -> Retry:
    """The error of a reply that is missing, cut or without its content."""
    kind = OutcomeUnknown if is_write else Retry
    return kind(Reason.PROGRESSING_WITH_RETRY, text)


@functools.cache
def known_regions() -> tuple[str, ...]:
    """Where EC2 is, as far as botocore knows; a newer region is none of them. Sorted."""
    session = botocore.session.get_session()
    partitions = session.get_available_partitions()
    return tuple(sorted({one for partition in partitions for one in session.get_available_regions("ec2", partition)}))


_NO_OWN_IDENTITY = (NoCredentialsError, CredentialRetrievalError, PartialCredentialsError)
"""Raised before a request leaves, of the operator's own identity alone: a Secret's keys are always there."""
# Raised before a request leaves: the connection could not be made. Everything else may have reached EC2.
_NOT_SENT = (EndpointConnectionError, ConnectTimeoutError, ProxyConnectionError)


def from_botocore_error(error: BotoCoreError, operation: str, region: str, *, is_write: bool) -> OperatorError:
    """What a failure without a reply means. botocore's own text is left out: it may hold headers and parameters."""
    if isinstance(error, ParamValidationError):
        names = sorted(set(re.findall(r"parameter:? \"?([A-Za-z][A-Za-z0-9.\[\]]*)", str(error))))
        text = f"{operation}: malformed parameters: {', '.join(names) or 'unnamed'}"
        return Blocked(Reason.INVALID_SPEC, text).as_refusal()
    kind = type(error).__name__
    if isinstance(error, _NO_OWN_IDENTITY):
        text = (
            f"{operation}: the operator has no AWS identity of its own ({kind}); give its service account one (IRSA, "
            "EKS Pod Identity), or name a Secret in spec.aws.credentials"
        )
        return Blocked(Reason.AUTH_FAILURE, text).as_refusal()
    if _is_foreign_certificate(error):
        text = f"{operation}: who answers for AWS in {region} has no certificate of AWS; look for a proxy in between"
        return Retry(Reason.PROGRESSING_WITH_RETRY, text).as_refusal()
    if isinstance(error, EndpointConnectionError) and region not in (regions := known_regions()):
        alike = difflib.get_close_matches(region, regions, 1)
        text = f"{operation}: AWS answers nowhere in {region}, of which this release does not know, either"
        hint = f"; is {alike[0]} meant?" if alike else ""
        return InvalidSpec("spec.aws.region", f"{text}{hint}").as_refusal()
    if isinstance(error, _NOT_SENT):
        text = (
            f"{operation}: no connection to AWS in {region} ({kind}); look whether there is such a region, and at the "
            "operator's way out: network policies, DNS, proxy"
        )
        return Retry(Reason.PROGRESSING_WITH_RETRY, text).as_refusal()
    return unusable_reply(f"{operation}: no usable reply from AWS in {region} ({kind})", is_write=is_write)


def _is_foreign_certificate(error: BotoCoreError) -> bool:
    """Whether TLS failed before anything was sent.

    It fails in a reply as well as in the handshake, and botocore calls both SSLError; certificates are judged in the
    handshake alone.
    """
    causes: list[BaseException] = []
    cause: object = error if isinstance(error, SSLError) else None
    while isinstance(cause, BaseException) and len(causes) < CAUSES_LOOKED_AT:
        causes.append(cause)
        cause = getattr(cause, "kwargs", {}).get("error") or (cause.args[0] if cause.args else None)
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in causes)
