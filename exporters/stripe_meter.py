"""Usage as meter events of Stripe Billing, by Stripe's own library.

An event carries our identifier, by which Stripe takes it once; that it has it already ("An event already exists with
identifier ...", a 400) is what a repetition should be told. Stripe promises this for at least 24 hours, so
`engine.metering` repeats nothing that is older. No ``Idempotency-Key`` of ours goes with it: under one, Stripe would
repeat the answer of the first try for a day, also when that was a 500. The library repeats nothing by itself.
"""

from __future__ import annotations

import stripe
from stripe import StripeClient

from engine.errors import Fatal, RetryLater, Unavailable
from engine.ports import MeterEvent

TIMEOUT = 20.0
"""Seconds for one request; much less than `engine.metering` waits before somebody else takes it up."""
_KNOWN = "event already exists with identifier"


class StripeMeter:
    """Sends to the meter whose events are called `meter`; it sums up `value`. `base_url` is for tests and proxies."""

    name = "stripe"

    def __init__(self, key: str, *, meter: str, base_url: str | None = None) -> None:
        self._meter = meter
        self._client = StripeClient(
            key,
            base_addresses={"api": base_url} if base_url else None,
            http_client=stripe.RequestsClient(timeout=TIMEOUT),
            max_network_retries=0,
        )

    def send(self, event: MeterEvent) -> None:
        try:
            self._client.v1.billing.meter_events.create(
                {
                    "event_name": self._meter,
                    "identifier": event.identifier,
                    "payload": {"stripe_customer_id": event.customer, "value": str(event.quantity)},
                    "timestamp": int(event.at.timestamp()),
                }
            )
        except (stripe.RateLimitError, stripe.AuthenticationError, stripe.PermissionError) as error:
            raise RetryLater(_sentence(error)) from error
        except stripe.InvalidRequestError as error:
            if _KNOWN in str(error.user_message or error).lower():
                return
            raise Fatal(_sentence(error)) from error
        except stripe.StripeError as error:
            raise Unavailable(_sentence(error)) from error


def _sentence(error: stripe.StripeError) -> str:
    """What Stripe said, without what it quotes of our key."""
    if isinstance(error, stripe.AuthenticationError):
        return "Stripe does not accept the key of FAIRLANE_STRIPE_KEY."
    return f"Stripe: {error.user_message or type(error).__name__}"[:500]
