"""The kinds of triggers that exist."""

from __future__ import annotations

from triggers.kinds import Kinds
from triggers.manual import Manual
from triggers.poll import Poll
from triggers.schedule import Schedule
from triggers.webhooks import Webhook

KINDS = Kinds([Manual(), Webhook(), Schedule(), Poll()])
