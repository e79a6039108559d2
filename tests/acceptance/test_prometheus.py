"""A real Prometheus scrapes an engine at work: every rule and every query of a dashboard has data."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from engine.db import Database
from engine.usage import RollUp
from tests.installation import Installation, Tenant, installed, wait_for
from tests.ops_files import CONFIG, RULES, RULES_TEST, dashboards, measured, queries, rules
from tests.prometheus_server import Programs, Prometheus, programs, running_prometheus

TOKEN = "what-a-scrape-must-send"
LIMIT, STARTS = 5, 12
GOOD = {"id": "echo", "action": "debug.echo", "with": {"text": "hello"}}
BAD = {"id": "call", "action": "http.request", "with": {"url": "http://127.0.0.1:1/"}}


@pytest.fixture(scope="module")
def tools() -> Programs:
    return programs()


def test_promtool_finds_no_fault_in_configuration_and_rules(tools: Programs) -> None:
    for what, *files in (("config", CONFIG), ("rules", *RULES)):
        done = subprocess.run([tools.promtool, "check", str(what), *map(str, files)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_only_then(tools: Programs) -> None:
    done = subprocess.run([tools.promtool, "test", "rules", RULES_TEST], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_and_every_query_of_a_dashboard_has_data_of_an_engine_at_work(
    tools: Programs, tmp_path: Path, database_url: str
) -> None:
    with installed(tmp_path, database_url) as installation:
        installation.environment["FAIRLANE_METRICS_TOKEN"] = TOKEN
        installation.start_api()
        config = configured(tmp_path, installation.port)
        with running_prometheus(tools.prometheus, config, tmp_path / "prometheus") as prometheus:
            installation.start_beat()
            installation.start_worker()
            tenant = over_its_limit(installation)
            with at_work(tenant, database_url):
                has_data_for_everything(prometheus, tenant.id)


def configured(folder: Path, port: int) -> Path:
    """The configuration that is shipped, with the token, once a second."""
    (folder / "token").write_text(TOKEN)
    changes = {
        ": 15s": ": 1s",
        "rules/": f"{CONFIG.parent}/rules/",
        "    # authorization:": "    authorization:",
        "    #   credentials_file: /etc/prometheus/fairlane.token": f"      credentials_file: {folder}/token",
        "127.0.0.1:8000": f"127.0.0.1:{port}",
    }
    text = CONFIG.read_text()
    for shipped, ours in changes.items():
        assert shipped in text
        text = text.replace(shipped, ours)
    path = folder / "prometheus.yml"
    path.write_text(text)
    return path


def over_its_limit(installation: Installation) -> Tenant:
    """An organization of which some runs were held, and that may go on."""
    tenant = installation.tenant()
    workflow = tenant.workflow(GOOD)
    set_limit(installation.database_url, tenant.id, LIMIT)
    for _ in range(STARTS):
        assert tenant.hook(workflow).status_code == 202
    assert len(tenant.runs(status="held")) == STARTS - LIMIT
    set_limit(installation.database_url, tenant.id, 1000 * STARTS)
    return tenant


def set_limit(database_url: str, tenant: str, limit: int) -> None:
    with psycopg.connect(database_url.replace("+psycopg", "")) as connection:
        connection.execute(
            "UPDATE tenants SET limits = limits || jsonb_build_object('max_executions_per_month', %s::int)"
            " WHERE id = %s",
            [limit, tenant],
        )


@contextmanager
def at_work(tenant: Tenant, database_url: str) -> Iterator[None]:
    """Runs that succeed and runs that fail, all the time; and the roll-up of beat, which is too rare for a test."""
    workflows = [tenant.workflow(GOOD), tenant.workflow(BAD)]
    database, done = Database(database_url), threading.Event()

    def work() -> None:
        while not done.wait(0.2):
            for workflow in workflows:
                tenant.hook(workflow)
            RollUp(database).run_once()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        database.close()


def has_data_for_everything(prometheus: Prometheus, tenant: str) -> None:
    asked = {query for board in dashboards().values() for query in queries(board, tenant=tenant)}
    for rule in rules():
        asked |= {rule["record"], rule["expr"]} if "record" in rule else set(measured(rule["expr"]))
    missing = asked

    def nothing_missing() -> bool:
        nonlocal missing
        missing = {query for query in missing if not prometheus.values(query)}
        return not missing

    try:
        wait_for(nothing_missing, "data for every query", seconds=30)
    except AssertionError:
        assert missing == set()
    evaluated = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(evaluated) == len(rules())
    assert {rule["name"]: rule.get("lastError") for rule in evaluated if rule["health"] != "ok"} == {}
    assert tenant in prometheus.get("label/tenant/values", **{"match[]": "fairlane_runs_total"})
