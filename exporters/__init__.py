"""Where usage is reported to: payment providers, each behind `engine.ports.MeterExporter`.

Like actions, exporters know neither database nor Celery: `tasks.py` and the CLI hand them to `engine.metering`. The
library of a provider is an extra of the package and is imported when its key is set.
"""

from __future__ import annotations

from engine.errors import ConfigurationError
from engine.ports import MeterExporter

__all__ = ["SERVICES", "build"]

SERVICES = frozenset({"stripe"})
"""Services whose base URLs are for exporters: no action may reach what only the operator's key is for."""


def build(*, stripe_key: str | None, stripe_meter: str, service_urls: dict[str, str]) -> MeterExporter | None:
    """The exporter that is configured; None without a key. Raises ConfigurationError when its library is missing."""
    if stripe_key is None:
        return None
    try:
        from exporters.stripe_meter import StripeMeter
    except ModuleNotFoundError as error:
        if error.name != "stripe":
            raise
        detail = "FAIRLANE_STRIPE_KEY is set, and the library of Stripe is missing: pip install 'fairlane[stripe]'."
        raise ConfigurationError(detail) from None
    return StripeMeter(stripe_key, meter=stripe_meter, base_url=service_urls.get("stripe"))
