"""When something that EC2 does not show is gone. One rule for instances, groups and key pairs. Pure.

EC2 shows what was just made only after a while, and a look by tag may take longer to show it than one by id (EC2
Developer Guide, "Eventual consistency in the Amazon EC2 API": wait up to five minutes). So absence proves something
only in looks that began late enough after the **last** call that could have made the thing: the first call says nothing
of what its repeat has made. What was seen dying, or answered a deletion, needs no such proof.
"""

from __future__ import annotations

from datetime import datetime, timedelta

VISIBLE_AFTER = timedelta(minutes=5)
"""What was made by then is shown."""

NOTED = timedelta(minutes=1)
"""An intent notes the last call at most this much late: a repeat within a minute is not written down anew."""

LOOK_AGAIN = timedelta(seconds=10)
"""When somebody who waits for such a proof looks again. What is shown after all wakes them sooner, so that a pass in
between finds nothing new; and questions that nobody reads for some of their periods rest."""

SPAN = timedelta(seconds=60)
"""For how long complete looks must have missed it: a single empty answer may be a faulty one."""


def is_gone(last_call: datetime, looked_at: datetime | None, missing_for: timedelta | None) -> bool:
    """Whether nothing of that call exists any more, or ever did.

    `last_call`: when the intent says that EC2 was asked last. `looked_at`: when the newest complete look began; None:
    there was none. `missing_for`: from the first to the newest of the complete looks in a row that missed it; None:
    the newest one shows it, or none was made. All times are aware.
    """
    if looked_at is None or missing_for is None:
        return False
    return missing_for >= SPAN and looked_at - last_call >= VISIBLE_AFTER + NOTED


def is_noted(last_call: datetime | None, now: datetime) -> bool:
    """Whether an intent with this `last_call` covers a call that leaves at `now`; if not, it is written anew first."""
    return last_call is not None and now - last_call < NOTED
