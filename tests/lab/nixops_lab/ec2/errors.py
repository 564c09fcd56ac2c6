"""The one exception of the layer: an EC2 error code, its text and its HTTP status.

Codes and texts: Amazon EC2 API Reference, "Error codes for the Amazon EC2 API".
"""


class Ec2Error(Exception):
    """Becomes the reply `<Response><Errors><Error>`; nothing was changed."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def invalid(message: str) -> Ec2Error:
    """`InvalidParameterValue`."""
    return Ec2Error("InvalidParameterValue", message)


def combination(message: str) -> Ec2Error:
    """`InvalidParameterCombination`."""
    return Ec2Error("InvalidParameterCombination", message)


def missing(parameter: str) -> Ec2Error:
    """`MissingParameter`."""
    return Ec2Error("MissingParameter", f"The request must contain the parameter {parameter}")


def incorrect_state(message: str) -> Ec2Error:
    """`IncorrectInstanceState`."""
    return Ec2Error("IncorrectInstanceState", message)


def unsupported(message: str) -> Ec2Error:
    """`UnsupportedOperation`: EC2 offers it, the lab does not model it and must not pretend."""
    return Ec2Error("UnsupportedOperation", message)
