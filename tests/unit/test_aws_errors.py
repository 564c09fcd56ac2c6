"""Which EC2 error leads to what, and what people read of it."""

from __future__ import annotations

import ssl

import pytest
import urllib3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    ParamValidationError,
    ReadTimeoutError,
    SSLError,
)

from nixops_operator.adapters.aws.errors import ANSWERS, ANSWERS_OF, from_botocore_error, from_client_error
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import (
    Blocked,
    InvalidSpec,
    Lost,
    NotOffered,
    OperatorError,
    OutcomeUnknown,
    Retry,
    at_field,
)

ENDPOINT = {"endpoint_url": "https://ec2.us-west-2.amazonaws.com"}


def refusal(code: str, status: int = 400, message: str = "what AWS says") -> ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "RunInstances")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status", "kind", "reason"),
    [
        ("RequestLimitExceeded", 503, Retry, Reason.THROTTLED),
        ("Throttling", 400, Retry, Reason.THROTTLED),
        ("ThrottlingException", 400, Retry, Reason.THROTTLED),
        ("RequestThrottledException", 400, Retry, Reason.THROTTLED),
        ("Whatever", 429, Retry, Reason.THROTTLED),
        # Capacity is HTTP 500 with EC2: nothing was made, the outcome is known.
        ("InsufficientInstanceCapacity", 500, Retry, Reason.INSUFFICIENT_CAPACITY),
        ("InsufficientAddressCapacity", 500, Retry, Reason.INSUFFICIENT_CAPACITY),
        ("InsufficientVolumeCapacity", 500, Retry, Reason.INSUFFICIENT_CAPACITY),
        ("InsufficientFreeAddressesInSubnet", 400, Retry, Reason.INSUFFICIENT_CAPACITY),
        ("InternalError", 500, OutcomeUnknown, Reason.PROGRESSING_WITH_RETRY),
        ("Unavailable", 503, OutcomeUnknown, Reason.PROGRESSING_WITH_RETRY),
        ("502", 502, OutcomeUnknown, Reason.PROGRESSING_WITH_RETRY),
        ("", 200, OutcomeUnknown, Reason.PROGRESSING_WITH_RETRY),
        ("VcpuLimitExceeded", 400, Blocked, Reason.QUOTA_EXCEEDED),
        ("RulesPerSecurityGroupLimitExceeded", 400, Blocked, Reason.QUOTA_EXCEEDED),
        ("UnauthorizedOperation", 403, Blocked, Reason.ACCESS_DENIED),
        ("SomethingNew", 403, Blocked, Reason.ACCESS_DENIED),
        ("AuthFailure", 403, Blocked, Reason.AUTH_FAILURE),
        ("InvalidClientTokenId", 403, Blocked, Reason.AUTH_FAILURE),
        ("SignatureDoesNotMatch", 403, Blocked, Reason.AUTH_FAILURE),
        ("ExpiredToken", 400, Blocked, Reason.EXPIRED),
        ("InvalidAMIID.NotFound", 400, Blocked, Reason.IMAGE_NOT_FOUND),
        ("InvalidAMIID.Malformed", 400, Blocked, Reason.IMAGE_NOT_FOUND),
        ("InvalidInstanceType", 400, InvalidSpec, Reason.INVALID_SPEC),
        ("Unsupported", 400, InvalidSpec, Reason.INVALID_SPEC),
        ("InvalidSubnetID.NotFound", 400, InvalidSpec, Reason.INVALID_SPEC),
        ("InvalidParameterCombination", 400, Blocked, Reason.INVALID_SPEC),
        ("InvalidUserData.Malformed", 400, Blocked, Reason.INVALID_SPEC),
        ("InvalidKeyPair.NotFound", 400, Blocked, Reason.KEY_PAIR_NOT_READY),
        ("InvalidGroup.NotFound", 400, Blocked, Reason.SECURITY_GROUP_NOT_READY),
        ("OperationNotPermitted", 400, Blocked, Reason.CHANGE_FORBIDDEN),
        ("IdempotentInstanceTerminated", 400, Lost, Reason.TERMINATED),
        ("IdempotentParameterMismatch", 400, Lost, Reason.LAUNCH_AMBIGUOUS),
        ("SomethingNew", 400, Retry, Reason.PROGRESSING_WITH_RETRY),
        ("SomethingNewLimitExceeded", 400, Blocked, Reason.QUOTA_EXCEEDED),
    ],
)
def test_a_refused_launch(code: str, status: int, kind: type[Exception], reason: Reason) -> None:
    error = from_client_error(refusal(code, status), "RunInstances", is_write=True)

    assert type(error) is kind
    assert error.reason is reason
    assert "RunInstances" in error.message
    assert code in error.message
    assert error.is_refusal is (kind is not OutcomeUnknown), "whatever is no unknown outcome made nothing"
    assert "what AWS says" in error.message or code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    ("code", "status", "kind", "reason"),
    [
        ("InternalError", 500, Retry, Reason.PROGRESSING_WITH_RETRY),
        ("InvalidGroup.NotFound", 400, Retry, Reason.NOT_FOUND),
        ("InvalidInstanceID.NotFound", 400, Retry, Reason.NOT_FOUND),
        ("DependencyViolation", 400, Retry, Reason.DELETING),
        ("IncorrectInstanceState", 400, Retry, Reason.PENDING),
    ],
)
def test_a_refused_look_or_change_of_something_that_exists(
    code: str, status: int, kind: type[Exception], reason: Reason
) -> None:
    error = from_client_error(refusal(code, status), "DescribeInstances", is_write=False)

    assert type(error) is kind
    assert error.reason is reason


def test_an_image_of_others_and_a_type_of_nobody_hide_behind_other_codes() -> None:
    image = refusal("AuthFailure", 403, "Not authorized for images: [ami-0123456789abcdef0]")
    assert from_client_error(image, "RunInstances", is_write=True).reason is Reason.IMAGE_NOT_FOUND

    kind = refusal("InvalidParameterValue", 400, "The following supplied instance types do not exist: [t9.colossal]")
    error = from_client_error(kind, "RunInstances", is_write=True)
    assert isinstance(error, InvalidSpec)
    assert error.field == "spec.target.ec2.instanceType"


def test_a_type_that_a_zone_does_not_have_may_be_had_in_another() -> None:
    text = "Your requested instance type (t3.micro) is not supported in your requested Availability Zone (us-east-1e)."
    told = refusal("Unsupported", 400, text)
    assert isinstance(from_client_error(told, "RunInstances", is_write=True), NotOffered)
    assert type(from_client_error(told, "StartInstances", is_write=True)) is InvalidSpec


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ("Iops to volume size ratio of 800.000000 is too high; maximum is 500", "rootVolume"),
        ("Throughput (MiBps) to iops ratio of 0.300000 is too high; maximum is 0.250000 MiBps per iops", "rootVolume"),
        ("User data is limited to 16384 bytes", "userDataExtra"),
        ("Security group sg-1 and subnet subnet-1 belong to different networks.", "securityGroups"),
        ("The instance configuration for this AMI does not support dedicated tenancy", "tenancy"),
        ("The Placement Group near is in another zone.", "placementGroup"),
    ],
)
def test_a_refused_launch_is_told_with_the_field_that_aws_speaks_of(words: str, field: str) -> None:
    error = from_client_error(refusal("InvalidParameterValue", 400, words), "RunInstances", is_write=True)

    assert isinstance(error, InvalidSpec)
    assert error.field == f"spec.target.ec2.{field}"


def test_too_many_groups_are_told_with_their_field_and_the_way_out() -> None:
    error = from_client_error(refusal("SecurityGroupsPerInterfaceLimitExceeded"), "RunInstances", is_write=True)

    assert (type(error), error.reason) == (Blocked, Reason.QUOTA_EXCEEDED)
    assert error.message.startswith("spec.target.ec2.securityGroups: ")
    assert "name fewer" in error.message


def test_a_region_that_nobody_knows_is_told_as_such_and_the_one_that_is_meant() -> None:
    endpoint = EndpointConnectionError(endpoint_url="https://sts.us-wset-2.amazonaws.com")
    error = from_botocore_error(endpoint, "GetCallerIdentity", "us-wset-2", is_write=False)

    assert isinstance(error, InvalidSpec)
    assert error.field == "spec.aws.region"
    assert "is us-west-2 meant?" in error.message
    known = from_botocore_error(endpoint, "GetCallerIdentity", "us-west-2", is_write=False)
    assert type(known) is Retry


@pytest.mark.parametrize(
    ("error", "told"),
    [
        pytest.param(
            Blocked(Reason.INVALID_SPEC, "no"), InvalidSpec("spec.x", "no"), id="a value that AWS does not take"
        ),
        pytest.param(
            Blocked(Reason.QUOTA_EXCEEDED, "no"), Blocked(Reason.QUOTA_EXCEEDED, "spec.x: no"), id="too much of it"
        ),
        pytest.param(Blocked(Reason.ACCESS_DENIED, "no"), Blocked(Reason.ACCESS_DENIED, "no"), id="a missing right"),
        pytest.param(InvalidSpec("spec.y", "no"), InvalidSpec("spec.y", "no"), id="it names a field itself"),
        pytest.param(Retry(Reason.PENDING, "no"), Retry(Reason.PENDING, "no"), id="nothing is wrong"),
    ],
)
def test_what_aws_refuses_of_a_value_is_told_with_its_field(error: OperatorError, told: OperatorError) -> None:
    assert at_field(error, "spec.x") == told
    assert at_field(error.as_refusal(), "spec.x").is_refusal
    assert at_field(error, "") is error


@pytest.mark.parametrize(
    ("message", "text"),
    [
        pytest.param(
            "You are not authorized. Encoded authorization failure message: 4GIOHlTkIaWHQD0Q0m6X\nYk",
            "You are not authorized.",
            id="encoded message",
        ),
        pytest.param("No. (Request ID: 1b5c2d1e-57be-4ac5-8d21-4a1f2c)", "No.", id="request id"),
        pytest.param("two\n   lines", "two lines", id="line breaks"),
        pytest.param("", "no explanation given", id="nothing"),
    ],
)
def test_texts_stay_the_same_from_call_to_call(message: str, text: str) -> None:
    error = from_client_error(refusal("UnauthorizedOperation", 403, message), "RunInstances", is_write=True)

    assert error.message == f"RunInstances: UnauthorizedOperation: {text}"


def test_texts_hold_no_clock() -> None:
    message = "Request has expired. Timestamp date is 2026-11-22T22:00:00Z"

    assert "22:00" not in from_client_error(refusal("RequestExpired", 400, message), "X", is_write=False).message


def tls(error: ssl.SSLError) -> SSLError:
    """As botocore tells it: around urllib3's error, which is around Python's."""
    return SSLError(**ENDPOINT, error=urllib3.exceptions.SSLError(error))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        # Nothing was sent.
        pytest.param(EndpointConnectionError(**ENDPOINT), Retry, id="nobody listens"),
        pytest.param(ConnectTimeoutError(**ENDPOINT), Retry, id="nobody answers the handshake"),
        pytest.param(tls(ssl.SSLCertVerificationError("self-signed")), Retry, id="another's certificate"),
        # Something may have been.
        pytest.param(ReadTimeoutError(**ENDPOINT), OutcomeUnknown, id="no answer"),
        pytest.param(ConnectionClosedError(**ENDPOINT), OutcomeUnknown, id="cut"),
        pytest.param(tls(ssl.SSLError("decryption failed")), OutcomeUnknown, id="TLS fails, perhaps in the reply"),
        pytest.param(
            HTTPClientError(error=ValueError("Invalid header value b'session-token\\n'")), OutcomeUnknown, id="others"
        ),
    ],
)
def test_a_write_without_a_reply(error: BotoCoreError, kind: type[Exception]) -> None:
    told = from_botocore_error(error, "RunInstances", "us-west-2", is_write=True)

    assert type(told) is kind
    assert told.is_refusal is (kind is Retry)
    assert told.reason is Reason.PROGRESSING_WITH_RETRY
    assert "us-west-2" in told.message
    assert "session-token" not in told.message
    assert type(from_botocore_error(error, "DescribeInstances", "us-west-2", is_write=False)) is Retry


def test_malformed_parameters_are_named_and_not_told() -> None:
    report = (
        "Invalid type for parameter UserData, value: hush, type: <class 'int'>\nUnknown parameter in input: \"Imag\""
    )

    told = from_botocore_error(ParamValidationError(report=report), "RunInstances", "us-west-2", is_write=True)

    assert isinstance(told, Blocked)
    assert "UserData" in told.message
    assert "hush" not in told.message


def test_no_code_means_the_same_twice() -> None:
    assert all(
        (type(answer("x")), answer("x")) != (type(ANSWERS[code]("x")), ANSWERS[code]("x"))
        for answers in ANSWERS_OF.values()
        for code, answer in answers.items()
        if code in ANSWERS
    )


def test_who_cannot_connect_reads_where_to_look() -> None:
    told = from_botocore_error(EndpointConnectionError(**ENDPOINT), "DescribeInstances", "us-west-2", is_write=False)

    assert told.message == (
        "DescribeInstances: no connection to AWS in us-west-2 (EndpointConnectionError); look whether there is such a "
        "region, and at the operator's way out: network policies, DNS, proxy"
    )
