"""Names of all effects, and layers around ports.

Every call that changes something outside the process has a stable dotted name. The composition root wraps each port in
layers: the fence (refuse when another operator may lead), audit and metrics always; a test bench may add its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

EFFECTS: dict[str, dict[str, str]] = {
    "kube": {
        "add_finalizer": "kube.set_finalizer",
        "remove_finalizer": "kube.set_finalizer",
        "write_intent": "kube.write_intent",
        "patch_status": "kube.patch_status",
        "create_machine": "kube.create_machine",
        "replace_machine_spec": "kube.replace_spec",
        "delete_machine": "kube.delete_machine",
        "create_secret": "kube.put_secret",
        "patch_secret": "kube.put_secret",
        "update_secret": "kube.put_secret",
        "remove_secret": "kube.put_secret",
        "hold_secret": "kube.put_secret",
        "release_secret": "kube.put_secret",
        "disown_secret": "kube.put_secret",
        "delete_secret": "kube.put_secret",
        "post_event": "kube.post_event",
    },
    "ec2": {
        name: f"ec2.{name}"
        for name in (
            "import_key_pair",
            "delete_key_pair",
            "create_security_group",
            "authorize_rules",
            "revoke_rules",
            "describe_rules",
            "delete_security_group",
            "run_instances",
            "start_instance",
            "terminate_instance",
            "set_security_groups",
            "set_monitoring",
            "create_tags",
            "delete_tags",
        )
    },
    "host": {
        "connect": "host.connect",
        "nix_daemon": "host.copy",
        "root_next": "host.root_next",
        "claim": "host.claim",
        "activate": "host.activate",
        "confirm": "host.confirm",
        "commit": "host.commit",
        "adopt": "host.commit",
        "rollback": "host.rollback",
    },
    "nix": {
        "add_tree": "nix.add_source",
        "add_path": "nix.add_source",
        "evaluate": "nix.evaluate",
        "build": "nix.build",
        "copy": "nix.push",
    },
}
"""Port → method → effect."""

_SPANS = frozenset({"host.copy"})
"""Effects that last: their method gives an asynchronous context manager, and the layers are around all of it."""

Layer = Callable[[str], AbstractAsyncContextManager[None]]
"""Called with the effect's name; entered before the call, left after it with its error, if any."""


class Layered:
    """A port with layers around its effects; everything else is handed through. Outermost layer first.

    `gives`: methods whose result is a port itself → that port's name in EFFECTS (`connect` gives a host).
    """

    def __init__(self, port: Any, name: str, layers: Sequence[Layer], gives: dict[str, str] | None = None) -> None:
        self._port = port
        self._name = name
        self._layers = tuple(layers)
        self._gives = gives or {}

    def __getattr__(self, method: str) -> Any:
        target = getattr(self._port, method)
        effect = EFFECTS[self._name].get(method)
        given = self._gives.get(method)
        if effect is None and given is None:
            return target
        if effect in _SPANS:
            return lambda *args, **kwargs: self._span(effect, target(*args, **kwargs))
        if effect is None and given is not None:
            return lambda *args, **kwargs: Layered(target(*args, **kwargs), given, self._layers)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = await _within(self._layers, str(effect), lambda: target(*args, **kwargs))
            return Layered(result, given, self._layers) if given is not None else result

        return call

    @asynccontextmanager
    async def _span(self, effect: str, entered: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        async with AsyncExitStack() as stack:
            for layer in self._layers:
                await stack.enter_async_context(layer(effect))
            yield await stack.enter_async_context(entered)


async def _within(layers: tuple[Layer, ...], effect: str, call: Callable[[], Awaitable[Any]]) -> Any:
    if not layers:
        return await call()
    async with layers[0](effect):
        return await _within(layers[1:], effect, call)
