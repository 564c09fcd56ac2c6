"""EC2 through boto3. Nothing outside this package sees a boto3 object or a botocore exception."""

from nixops_operator.adapters.aws.clouds import Boto3Clouds

__all__ = ["Boto3Clouds"]
