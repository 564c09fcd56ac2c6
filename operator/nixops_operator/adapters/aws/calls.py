"""One call to EC2: in a thread, its errors told in the port's classes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from botocore.parsers import ResponseParserError

from nixops_operator.adapters.aws.errors import from_botocore_error, from_client_error, unusable_reply
from nixops_operator.adapters.aws.quota import Quota
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import OperatorError

T = TypeVar("T")

PAGE_SIZE = 1000
_PAGE_SIZES = {"describe_instance_types": 100, "describe_volumes_modifications": 500}
"""Most that EC2 gives at once: EC2 API Reference, `MaxResults` of each action."""


class Calls:
    """Runs calls to one region in `pool`. A cancelled caller leaves its call running: only tokens and tags make that
    safe.

    `slots`: how many may run at once, each shared by those whom it concerns; a call holds one of each until its thread
    is free again, whether anybody still waits for it or not. Or an endpoint that does not answer takes all threads.
    `quota`: gives the one that each call takes its turn from, before it takes a slot.
    """

    def __init__(
        self, pool: Executor, region: str, slots: Sequence[asyncio.Semaphore], quota: Callable[[], Quota]
    ) -> None:
        self._pool = pool
        self._region = region
        self._slots = slots
        self._quota = quota

    async def read(self, operation: str, call: Callable[[], T]) -> T:
        """The result of a call that only looks, parsing included. Raises classes of errors.py."""
        return await self._run(operation, lambda: _translated(operation, self._region, call, is_write=False))

    async def write(self, operation: str, call: Callable[[], T], accepted: Container[str] = ()) -> T | None:
        """The result of a call that changes something; None if EC2 refused it with an `accepted` code. Raises classes
        of errors.py, OutcomeUnknown among them."""

        def attempt() -> T | None:
            try:
                return call()
            except ClientError as error:
                if error_code(error) in accepted:
                    return None
                raise

        return await self._run(operation, lambda: _translated(operation, self._region, attempt, is_write=True))

    async def _run(self, operation: str, call: Callable[[], T]) -> T:
        quota = self._quota()
        await quota.turn(operation)
        try:
            return await self._in_a_thread(call)
        except OperatorError as error:
            if error.reason is Reason.THROTTLED:
                quota.refused(operation)
            raise

    async def _in_a_thread(self, call: Callable[[], T]) -> T:
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as taken:
            for slot in self._slots:
                await slot.acquire()
                taken.callback(slot.release)
            running = self._pool.submit(call)
            release = taken.pop_all().close

        def is_free(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended; so have those who would wait
                loop.call_soon_threadsafe(release)

        running.add_done_callback(is_free)
        return await asyncio.wrap_future(running)


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _translated(operation: str, region: str, call: Callable[[], T], *, is_write: bool) -> T:
    try:
        return call()
    except ClientError as error:
        raise from_client_error(error, error.operation_name, is_write=is_write) from error
    except ParamValidationError as error:
        # botocore's text repeats the parameters, user data with a private host key among them: not even as a cause.
        raise from_botocore_error(error, operation, region, is_write=is_write) from None
    except BotoCoreError as error:
        raise from_botocore_error(error, operation, region, is_write=is_write) from None
    except (ResponseParserError, KeyError, IndexError, ValueError) as error:
        text = f"{operation}: EC2's reply cannot be read ({type(error).__name__})"
        raise unusable_reply(text, is_write=is_write) from None


def page_size(method: str) -> int:
    """How many items to ask for at once, as the paginated method of a client is named."""
    return _PAGE_SIZES.get(method, PAGE_SIZE)


def all_pages(client: Any, method: str, part: str, **parameters: Any) -> Iterator[Any]:
    """The items `part` of every page of a describe call. A page without that part raises KeyError: an incomplete
    answer must never look like an empty one."""
    config = {"PageSize": page_size(method)}
    pages = client.get_paginator(method).paginate(PaginationConfig=config, **parameters)
    for page in pages:
        yield from page[part]
