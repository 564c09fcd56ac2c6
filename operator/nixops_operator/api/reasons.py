"""The stable vocabulary of conditions and Events. A reason's text never changes its meaning; the message beside it is
for people."""

from __future__ import annotations

from enum import StrEnum


class ConditionType(StrEnum):
    """Condition types. All have positive polarity, but Reconciling and Stalled (kstatus' abnormal-true pair), which
    exist only while True."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    CREDENTIALS_READY = "CredentialsReady"
    INFRASTRUCTURE_READY = "InfrastructureReady"
    REACHABLE = "Reachable"
    CONFIGURATION_BUILT = "ConfigurationBuilt"
    CONFIGURATION_ACTIVE = "ConfigurationActive"
    KEYS_PRESENT = "KeysPresent"
    UP_TO_DATE = "UpToDate"
    HEALTHY = "Healthy"
    PAUSED = "Paused"


class Reason(StrEnum):
    """Reasons of conditions and Events, grouped as a person meets them."""

    # All is well.
    SUCCEEDED = "Succeeded"
    SUSPENDED = "Suspended"

    # Work is under way.
    PROVISIONING = "Provisioning"
    WAITING_FOR_INSTANCE = "WaitingForInstance"
    WAITING_FOR_SSH = "WaitingForSSH"
    FETCHING = "Fetching"
    WAITING_FOR_FACTS = "WaitingForFacts"
    EVALUATING = "Evaluating"
    BUILDING = "Building"
    COPYING = "Copying"
    ACTIVATING = "Activating"
    CONFIRMING = "Confirming"
    REBOOTING = "Rebooting"
    ROLLING_BACK = "RollingBack"
    DELETING = "Deleting"
    ROLLING_OUT = "RollingOut"
    PROGRESSING_WITH_RETRY = "ProgressingWithRetry"

    # The spec, or what it names.
    INVALID_SPEC = "InvalidSpec"
    UNKNOWN_ANNOTATION = "UnknownAnnotation"
    SOURCE_NOT_FOUND = "SourceNotFound"
    SOURCE_FORBIDDEN = "SourceForbidden"
    NIXPKGS_CHANGED = "NixpkgsChanged"
    EVALUATION_FAILED = "EvaluationFailed"
    BUILD_FAILED = "BuildFailed"
    CHANGE_FORBIDDEN = "ChangeForbidden"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"

    # Credentials.
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a password
    CREDENTIALS_FORBIDDEN = "CredentialsForbidden"
    AUTH_FAILURE = "AuthFailure"
    EXPIRED = "Expired"
    ACCESS_DENIED = "AccessDenied"

    # EC2.
    LAUNCH_PENDING = "LaunchPending"
    LAUNCH_AMBIGUOUS = "LaunchAmbiguous"
    INSUFFICIENT_CAPACITY = "InsufficientCapacity"
    QUOTA_EXCEEDED = "QuotaExceeded"
    THROTTLED = "Throttled"
    PENDING = "Pending"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    SHUTTING_DOWN = "ShuttingDown"
    TERMINATED = "Terminated"
    NOT_FOUND = "NotFound"
    INSTANCE_LOST = "InstanceLost"
    IMAGE_NOT_FOUND = "ImageNotFound"
    SECURITY_GROUP_NOT_READY = "SecurityGroupNotReady"
    KEY_PAIR_NOT_READY = "KeyPairNotReady"
    ADOPTION_CONFLICT = "AdoptionConflict"

    # The host.
    HOST_FORBIDDEN = "HostForbidden"
    CONNECT_TIMEOUT = "ConnectTimeout"
    CONNECTION_REFUSED = "ConnectionRefused"
    AUTHENTICATION_FAILED = "AuthenticationFailed"
    HOST_KEY_UNKNOWN = "HostKeyUnknown"
    HOST_KEY_MISMATCH = "HostKeyMismatch"
    COPY_FAILED = "CopyFailed"
    ACTIVATION_FAILED = "ActivationFailed"
    ROLLED_BACK = "RolledBack"
    BOOT_ENTRY_FAILED = "BootEntryFailed"
    REBOOT_REQUIRED = "RebootRequired"
    DRY_ACTIVATED = "DryActivated"
    HEALTH_CHECK_FAILED = "HealthCheckFailed"
    DELIVERING = "Delivering"
    DELIVERY_FAILED = "DeliveryFailed"

    # Its health.
    CHECK_FAILED = "CheckFailed"
    UNITS_FAILED = "UnitsFailed"

    # Drift.
    INSTANCE_DRIFT = "InstanceDrift"
    TAG_DRIFT = "TagDrift"
    SECURITY_GROUP_DRIFT = "SecurityGroupDrift"
    SYSTEM_DRIFT = "SystemDrift"
    PROFILE_DRIFT = "ProfileDrift"
    BOOT_DRIFT = "BootDrift"
    KEY_DRIFT = "KeyDrift"
