"""Roles of the account, and the temporary credentials of those who take them on.

Facts: STS API Reference, "AssumeRole"; IAM User Guide, "How to use an external ID when granting access to your AWS
resources to a third party" and "Temporary security credentials in IAM".
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from xml.sax.saxutils import escape

from nixops_lab.ec2.errors import Ec2Error

ACCOUNT = "123456789012"
ROLES: Mapping[str, str | None] = {"nixops": None, "nixops-strict": "tenant-7"}
"""Name → the external id that its trust policy asks for. Every caller of the account may take them on with it."""
SHORTEST_SECONDS, LONGEST_SECONDS, USUAL_SECONDS = 900, 43200, 3600


@dataclass(frozen=True)
class Session:
    """Temporary credentials; `ends_at` in seconds since 1970."""

    access_key: str
    secret: str
    token: str
    role: str
    ends_at: float


class Roles:
    """Sessions that were given out."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def session(self, access_key: str) -> Session | None:
        """The session of an access key."""
        return self._sessions.get(access_key)

    def assume(self, caller: str, parameters: Mapping[str, str], now: float, lasts: float | None) -> Session:
        """`lasts`: seconds, whatever was asked for. Raises `AccessDenied`, `ValidationError`."""
        arn = parameters.get("RoleArn", "")
        name = arn.removeprefix(f"arn:aws:iam::{ACCOUNT}:role/")
        external_id = ROLES.get(name)
        if name not in ROLES or (external_id is not None and parameters.get("ExternalId") != external_id):
            # STS says the same of a role that does not exist, or asks for another external id.
            raise Ec2Error(
                "AccessDenied",
                f"User: arn:aws:iam::{ACCOUNT}:user/{caller} is not authorized to perform: sts:AssumeRole on resource: "
                f"{arn}",
                403,
            )
        seconds = float(parameters.get("DurationSeconds", USUAL_SECONDS))
        if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
            raise Ec2Error("ValidationError", f"1 validation error detected: DurationSeconds {seconds:.0f}", 400)
        made = Session(
            access_key=f"ASIA{secrets.token_hex(8).upper()}",
            secret=secrets.token_hex(20),
            token=secrets.token_hex(40),
            role=name,
            ends_at=now + (seconds if lasts is None else lasts),
        )
        self._sessions[made.access_key] = made
        return made


def reply(session: Session, session_name: str, request_id: str) -> bytes:
    """AssumeRole's answer."""
    ends_at = datetime.fromtimestamp(session.ends_at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    user = f"arn:aws:sts::{ACCOUNT}:assumed-role/{session.role}/{escape(session_name)}"
    return (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>'
        f"<AssumedRoleUser><AssumedRoleId>AROALAB:{escape(session_name)}</AssumedRoleId><Arn>{user}</Arn>"
        f"</AssumedRoleUser><Credentials><AccessKeyId>{session.access_key}</AccessKeyId>"
        f"<SecretAccessKey>{session.secret}</SecretAccessKey><SessionToken>{session.token}</SessionToken>"
        f"<Expiration>{ends_at}</Expiration></Credentials></AssumeRoleResult>"
        f"<ResponseMetadata><RequestId>{request_id}</RequestId></ResponseMetadata></AssumeRoleResponse>"
    ).encode()
