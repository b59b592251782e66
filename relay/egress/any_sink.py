"""The sink of all hooks: it hands each delivery to the sink that the hook's type needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from relay.egress.sinks import Checked, Delivery, Result
from relay.egress.webhook import WebhookSink
from relay.forwarded import Network
from relay.hooks import Hook, HookType
from relay.retry import Outcome

if TYPE_CHECKING:
    from relay.egress.aws import BatchSink

_MISSING: Final = "the package aiobotocore is not installed here: install relay[aws]"


def has_aws() -> bool:
    """Tell whether SQS and SNS are possible here."""
    return importlib.util.find_spec("aiobotocore") is not None


class AnySink:
    """Sends deliveries of every type of hook.

    ``clock`` returns nanoseconds since 1970; ``networks`` may be reached although not public.
    """

    def __init__(
        self, *, api_key: str, secret: str, clock: Callable[[], int], networks: Sequence[Network]
    ) -> None:
        self._webhooks = WebhookSink(api_key=api_key, secret=secret, clock=clock, networks=networks)
        self._networks = networks
        self._aws: dict[HookType, BatchSink] | None = None

    async def send(self, hook: Hook, delivery: Delivery, limit_s: float) -> Result:
        """Try once. Never raises but ``CancelledError``; ends within ``limit_s`` seconds."""
        if hook.hook_type is HookType.WEBHOOK:
            return await self._webhooks.send(hook, delivery, limit_s)
        sink = self._aws_sink(hook.hook_type)
        if sink is None:
            return Result(outcome=Outcome.REFUSED, latency_s=0.0, answer=_MISSING.encode())
        return await sink.send(hook, delivery, limit_s)

    async def check(self, hook: Hook) -> Checked:
        """Ask whether the queue or topic of an ``sqs`` or ``sns`` hook is there."""
        sink = self._aws_sink(hook.hook_type)
        return Checked(_MISSING, {}) if sink is None else await sink.check(hook)

    async def aclose(self) -> None:
        """Let go of every connection."""
        await self._webhooks.aclose()
        for sink in (self._aws or {}).values():
            await sink.aclose()

    def _aws_sink(self, hook_type: HookType) -> BatchSink | None:
        if self._aws is None:
            self._aws = self._open_aws() if has_aws() else {}
        return self._aws.get(hook_type)

    def _open_aws(self) -> dict[HookType, BatchSink]:
        """Open the sinks of AWS, whose library is large: most relays never load it."""
        from relay.egress.aws import BatchSink
        from relay.egress.sns import Sns
        from relay.egress.sqs import Sqs

        return {
            HookType.SQS: BatchSink(Sqs(), self._networks),
            HookType.SNS: BatchSink(Sns(), self._networks),
        }
