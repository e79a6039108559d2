"""What is in `ops/`, read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

OPS = Path(__file__).parents[1] / "ops"
CONFIG = OPS / "prometheus" / "prometheus.yml"
RULES_TEST = OPS / "prometheus" / "rules_test.yml"
RULES = sorted((OPS / "prometheus" / "rules").glob("*.yml"))
DASHBOARDS = sorted((OPS / "grafana").glob("*.json"))

_THRESHOLD = re.compile(r"(?:==|!=|>=|<=|>|<)\s*[\d.]+")
_UNLESS = re.compile(r"\bunless\b(?:\s+on\s*\([^)]*\))?")


def rules() -> list[dict[str, Any]]:
    """Every rule: with ``record`` or ``alert``, and ``expr``."""
    return [rule for path in RULES for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


def measured(expression: str) -> list[str]:
    """What an alert compares, without what it compares it to: each part has data while all is well."""
    return [_THRESHOLD.sub("", part).strip() for part in _UNLESS.split(expression)]


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those that show something."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def dashboards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in DASHBOARDS}


def queries(dashboard: dict[str, Any], *, tenant: str) -> list[str]:
    """What its panels ask, with what Grafana puts in for variables."""
    filled = {"$tenant": tenant, "$__rate_interval": "1m", "$__range": "3h"}
    found = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
    for name, value in filled.items():
        found = [query.replace(name, value) for query in found]
    return found
