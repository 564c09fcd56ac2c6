"""The AWS account that an object's things are in: credentials that work, of the account in which they were made. Pure;
both kinds use it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nixops_operator import retain
from nixops_operator.api.reasons import ConditionType, Reason
from nixops_operator.errors import Blocked, NotYet, OperatorError
from nixops_operator.objects import LeavingObject, ReconciledObject
from nixops_operator.planning import SOON, Finding, found_error
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome


@dataclass(frozen=True)
class RecordAccount(Step):
    """Write down the account before anything is made in it: without this, deletion needs no credentials."""

    account_id: str


def problem(given: ReconciledObject, error: OperatorError | None, account_id: str) -> OperatorError | None:
    """Why nothing can be said of EC2, or done there. `error`: of the last look; `account_id`: whose it was."""
    if error is not None:
        return error
    if given.account_id is None or given.account_id == account_id:
        return None
    message = (
        f"the credentials are of account {account_id}, this {given.key.kind.object_kind} is in account "
        f"{given.account_id}; nothing is touched: bring back the credentials of that account"
    )
    return Blocked(Reason.ACCESS_DENIED, message)


def unusable(error: OperatorError | None) -> Finding | None:
    """What keeps EC2 from being used; `error` is what `problem` says."""
    return found_error(error, ConditionType.CREDENTIALS_READY) if error is not None else None


def to_record(given: ReconciledObject, account_id: str) -> Finding | None:
    """The account is written down before anything is made in it."""
    if given.account_id is not None:
        return None
    kind = ConditionType.INFRASTRUCTURE_READY
    return Finding(Outcome.WORKING, Reason.PROVISIONING, "looking up the account", kind, (RecordAccount(account_id),))


def unreachable(
    leaving: LeavingObject, error: OperatorError, told: ConditionType, *, retains: bool, is_over: bool
) -> Finding:
    """How the way out stands while EC2 cannot be asked what is left. `told`: the condition that says so; `is_over`:
    whether waiting for what is to be retained is."""
    if isinstance(error, NotYet):
        return Finding(Outcome.DELETING, Reason.DELETING, error.message, look_again=SOON, awaits_answer=True)
    account_id = str(leaving.account_id)
    if retains and isinstance(error, Blocked):
        return replace(retain.without_credentials(error, account_id, is_over=is_over), condition=told)
    message = (
        f"cannot look for what is left in account {account_id}: {error.message}; "
        "repair the credentials, or set spec.deletionPolicy to Retain to let go of it"
    )
    outcome = Outcome.WEDGED if isinstance(error, Blocked) else Outcome.DELETING
    return Finding(outcome, error.reason, message, told, look_again=SOON)
