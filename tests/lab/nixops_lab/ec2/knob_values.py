"""What the values of knobs mean: JSON or text in, values out. Each reader raises ValueError for what it cannot read."""


def seconds(given: object) -> float:
    """Zero or more."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError("takes a number of seconds")  # noqa: TRY004 - the control interface's one class
    number = float(given)
    if not 0 <= number < float("inf"):
        raise ValueError("takes a number of seconds, zero or more")
    return number
