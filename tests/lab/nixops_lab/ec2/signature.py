"""Who calls: AWS Signature Version 4, checked with botocore's own implementation.

Facts: IAM User Guide, "Create a signed AWS API request"; codes: EC2 API Reference, "Common client error codes".
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from nixops_lab.ec2.errors import Ec2Error

# A signature is good for this long, in both directions.
MAX_SKEW_SECONDS = 5 * 60

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/(?P<region>[^/]+)/(?P<service>[^/]+)/aws4_request,\s*"
    r"SignedHeaders=(?P<headers>[^,]+),\s*Signature=(?P<signature>[0-9a-f]+)"
)


@dataclass(frozen=True)
class Claim:
    """What a request says about itself."""

    access_key: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str


def read_claim(headers: Mapping[str, str]) -> Claim:
    """Raises `MissingAuthenticationToken` for a request without a version 4 signature."""
    found = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
    if found is None:
        raise Ec2Error("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
    return Claim(
        access_key=found["key"],
        region=found["region"],
        service=found["service"],
        signed_headers=tuple(found["headers"].split(";")),
        signature=found["signature"],
    )


def unknown_caller(service: str) -> Ec2Error:
    """What a service says to an access key that does not exist: EC2 has a code of its own."""
    if service == "ec2":
        return Ec2Error("AuthFailure", "AWS was not able to validate the provided access credentials", 401)
    return Ec2Error("InvalidClientTokenId", "The security token included in the request is invalid.", 403)


def expired_session(service: str) -> Ec2Error:
    """What a service says to temporary credentials whose time is over."""
    if service == "ec2":
        return Ec2Error("RequestExpired", "Request has expired.", 400)
    return Ec2Error("ExpiredToken", "The security token included in the request is expired", 403)


def verify(
    claim: Claim, secret: str, method: str, url: str, headers: Mapping[str, str], body: bytes, now: float
) -> None:
    """Raises `RequestExpired` and `SignatureDoesNotMatch`."""
    stamp = headers.get("X-Amz-Date", "")
    try:
        signed_at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise Ec2Error("SignatureDoesNotMatch", "X-Amz-Date is missing or malformed", 403) from None
    if abs(signed_at.timestamp() - now) > MAX_SKEW_SECONDS:
        raise Ec2Error("RequestExpired", f"Request has expired: signed at {stamp}", 400)
    signed = {name: headers.get(name, "") for name in claim.signed_headers}
    request = AWSRequest(method=method, url=url, headers=signed, data=body)
    request.context["timestamp"] = stamp
    auth = SigV4Auth(Credentials(claim.access_key, secret), claim.service, claim.region)
    expected = auth.signature(auth.string_to_sign(request, auth.canonical_request(request)), request)
    if not hmac.compare_digest(expected, claim.signature):
        raise Ec2Error(
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details.",
            403,
        )
