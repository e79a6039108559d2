"""Slack, Discord and OpenWeather against local servers that speak their documented protocols."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from actions.registry import Registry, build
from engine.errors import Fatal, RetryLater
from tests.action_step import Step, run
from tests.outside_services import (
    Answer,
    DiscordService,
    HostileServer,
    OpenWeatherService,
    SlackService,
    json_answer,
)


@pytest.fixture
def slack() -> Iterator[SlackService]:
    with SlackService() as service:
        yield service


@pytest.fixture
def discord() -> Iterator[DiscordService]:
    with DiscordService() as service:
        yield service


@pytest.fixture
def weather() -> Iterator[OpenWeatherService]:
    with OpenWeatherService() as service:
        yield service


@pytest.fixture
def actions(slack: SlackService, discord: DiscordService, weather: OpenWeatherService) -> Iterator[Registry]:
    registry = build(service_urls={"slack": slack.url, "discord": discord.url, "openweather": f"{weather.url}/"})
    yield registry
    registry.close()


HOOK = "https://hooks.slack.com/services/T000/B000/secret"
DISCORD_HOOK = "https://discord.com/api/webhooks/1/secret"


def test_slack_takes_a_message_by_webhook(actions: Registry, slack: SlackService) -> None:
    blocks = [{"type": "divider"}]
    output = run(actions["slack.message"], Step(secret={"webhook_url": HOOK}), text=5, blocks=blocks)
    assert output == {"ok": True}
    assert slack.received[0].json == {"text": "5", "blocks": blocks}
    assert slack.received[0].headers["idempotency-key"] == "run_a:call"


def test_a_webhook_says_that_it_ignores_the_channel(actions: Registry) -> None:
    step = Step(secret={"webhook_url": HOOK})
    run(actions["slack.message"], step, text="hello", channel="#general")
    assert [level for level, _ in step.lines] == ["warning"]


def test_slack_takes_a_message_by_bot_token(actions: Registry, slack: SlackService) -> None:
    output = run(actions["slack.message"], Step(secret={"bot_token": "xoxb-good"}), text="hi", channel="#general")
    assert output == {"ok": True, "channel": "C1", "ts": "1503435956.000247"}
    assert slack.received[0].json == {"channel": "#general", "text": "hi"}
    assert slack.received[0].headers["idempotency-key"] == "run_a:call"
    assert slack.received[0].headers["user-agent"] == "Fairlane"


def test_a_service_url_may_end_in_api(slack: SlackService) -> None:
    registry = build(service_urls={"slack": f"{slack.url}/api"})
    run(registry["slack.message"], Step(secret={"bot_token": "xoxb-good"}), text="hi", channel="C1")
    assert slack.received[0].path == "/api/chat.postMessage"
    registry.close()


@pytest.mark.parametrize(
    ("token", "channel", "error"),
    [("xoxb-bad", "#general", "invalid_auth"), ("xoxb-good", "#nowhere", "channel_not_found")],
)
def test_what_slack_refuses_is_fatal_with_its_own_word(actions: Registry, token: str, channel: str, error: str) -> None:
    with pytest.raises(Fatal, match=error) as caught:
        run(actions["slack.message"], Step(secret={"bot_token": token}), text="hi", channel=channel)
    assert caught.value.data["error"] == error
    assert token not in str(caught.value.data) + caught.value.detail


def test_a_bot_token_needs_a_channel(actions: Registry, slack: SlackService) -> None:
    with pytest.raises(Fatal, match="needs a channel"):
        run(actions["slack.message"], Step(secret={"bot_token": "xoxb-good"}), text="hi")
    assert slack.received == []


@pytest.mark.parametrize("secret", [{"webhook_url": HOOK}, {"bot_token": "xoxb-good"}])
def test_the_rate_limit_of_slack_is_waited_for(actions: Registry, slack: SlackService, secret: dict[str, str]) -> None:
    slack.script = [slack.rate_limited(30)]
    with pytest.raises(RetryLater) as caught:
        run(actions["slack.message"], Step(secret=secret), text="hi", channel="C1")
    assert caught.value.after is not None
    assert caught.value.after.total_seconds() == 30
    assert len(slack.received) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(503, b"<html>down</html>"),
        Answer(500, b""),
        json_answer({"ok": False, "error": "internal_error"}),
        json_answer({"ok": False, "error": "service_unavailable"}, status=503),
    ],
)
def test_a_fault_of_slack_may_be_tried_again(actions: Registry, slack: SlackService, answer: Answer) -> None:
    slack.script = [answer]
    with pytest.raises(RetryLater):
        run(actions["slack.message"], Step(secret={"bot_token": "xoxb-good"}), text="hi", channel="C1")


def test_a_webhook_that_slack_does_not_know_is_fatal_and_stays_secret(
    actions: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hook = "https://hooks.slack.com/services/T000/B000/top-secret"
    with pytest.raises(Fatal, match="no_service") as caught:
        run(actions["slack.message"], Step(secret={"webhook_url": hook}), text="hi")
    assert "top-secret" not in caught.value.detail + str(caught.value.data) + repr(caught.value)
    assert "slack_sdk" not in {record.name for record in caplog.records}


@pytest.mark.parametrize("name", ["slack.message", "discord.message"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:6379/hook", "http://169.254.169.254/"])
def test_a_webhook_url_is_judged_like_any_other(name: str, url: str) -> None:
    action = build()[name]
    given = {"content": "hi"} if name.startswith("discord") else {"text": "hi"}
    with pytest.raises(Fatal) as caught:
        run(action, Step(secret={"webhook_url": url}), **given)
    assert caught.value.error_code == "target_refused"


@pytest.mark.parametrize("name", ["slack.message", "discord.message"])
def test_a_webhook_is_not_redirected(name: str, slack: SlackService) -> None:
    with HostileServer() as hostile:
        action = build(allowed_networks=[hostile.endpoint, slack.endpoint])[name]
        given = {"content": "hi"} if name.startswith("discord") else {"text": "hi"}
        with pytest.raises(Fatal, match="302"):
            run(action, Step(secret={"webhook_url": f"{hostile.url}/to/302/{slack.url}/"}), **given)
    assert slack.received == []


@pytest.mark.parametrize("name", ["slack.message", "discord.message"])
def test_a_slow_service_ends_at_the_deadline(name: str) -> None:
    with HostileServer() as hostile:
        action = build(allowed_networks=[hostile.endpoint])[name]
        given = {"content": "hi"} if name.startswith("discord") else {"text": "hi"}
        with pytest.raises(RetryLater) as caught:
            run(action, Step(secret={"webhook_url": f"{hostile.url}/drip"}, seconds=0.3), **given)
        assert caught.value.error_code == "timeout"


def test_discord_takes_a_message(actions: Registry, discord: DiscordService) -> None:
    output = run(actions["discord.message"], Step(secret={"webhook_url": DISCORD_HOOK}), content=3.5)
    assert output == {"ok": True}
    assert discord.received[0].json == {"content": "3.5"}
    assert discord.received[0].headers["idempotency-key"] == "run_a:call"


def test_discord_answers_with_the_message_when_asked_to_wait(actions: Registry) -> None:
    step = Step(secret={"webhook_url": f"{DISCORD_HOOK}?wait=true"})
    assert run(actions["discord.message"], step, content="hi") == {"ok": True, "id": "42"}


def test_the_rate_limit_of_discord_is_waited_for_to_the_millisecond(actions: Registry, discord: DiscordService) -> None:
    discord.script = [discord.rate_limited(0.65)]
    with pytest.raises(RetryLater) as caught:
        run(actions["discord.message"], Step(secret={"webhook_url": DISCORD_HOOK}), content="hi")
    assert caught.value.after is not None
    assert caught.value.after.total_seconds() == 0.65


def test_a_deleted_discord_webhook_is_fatal_and_stays_secret(actions: Registry) -> None:
    hook = "https://discord.com/api/webhooks/1/top-secret"
    with pytest.raises(Fatal, match="Unknown Webhook") as caught:
        run(actions["discord.message"], Step(secret={"webhook_url": hook}), content="hi")
    assert "top-secret" not in caught.value.detail + str(caught.value.data)


@pytest.mark.parametrize(
    ("units", "temp"), [(None, 25.33), ("metric", 25.33), ("imperial", 77.59), ("standard", 298.48)]
)
def test_the_weather_comes_in_the_units_asked_for(actions: Registry, units: str | None, temp: float) -> None:
    given = {} if units is None else {"units": units}
    output = run(actions["openweather.current"], Step(secret={"api_key": "good-key"}), city=" London ", **given)
    assert output["temp"] == temp
    assert (output["city"], output["country"], output["humidity"]) == ("London", "GB", 64)
    assert (output["conditions"], output["description"]) == ("Rain", "moderate rain")
    assert output["observed_at"] == "2022-08-30T14:43:12+00:00"


@pytest.mark.parametrize(
    ("key", "city", "sentence"), [("bad-key", "London", "Invalid API key"), ("good-key", "Atlantis", "city not found")]
)
def test_what_openweather_refuses_is_fatal_in_its_own_words(
    actions: Registry, key: str, city: str, sentence: str
) -> None:
    with pytest.raises(Fatal, match=sentence) as caught:
        run(actions["openweather.current"], Step(secret={"api_key": key}), city=city)
    assert key not in caught.value.detail + str(caught.value.data)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (json_answer({"cod": 429, "message": "Your account is blocked"}, status=429), RetryLater),
        (Answer(502, b"bad gateway"), RetryLater),
        (json_answer({"weather": "strange"}), Fatal),
        (Answer(200, b"not json"), Fatal),
    ],
)
def test_other_answers_of_openweather_are_told_apart(
    actions: Registry, weather: OpenWeatherService, answer: Answer, error: type[Exception]
) -> None:
    weather.script = [answer]
    with pytest.raises(error):
        run(actions["openweather.current"], Step(secret={"api_key": "good-key"}), city="London")


@pytest.mark.parametrize("name", ["slack.message", "discord.message", "openweather.current"])
def test_a_missing_credential_is_named(actions: Registry, name: str) -> None:
    given = {"slack.message": {"text": "x"}, "discord.message": {"content": "x"}}.get(name, {"city": "London"})
    with pytest.raises(Fatal) as caught:
        run(actions[name], Step(), **given)
    assert caught.value.error_code == "credential_missing"


def test_a_credential_that_is_no_url_says_so_in_one_sentence(actions: Registry) -> None:
    with pytest.raises(Fatal) as caught:
        run(actions["slack.message"], Step(secret={"webhook_url": "nonsense"}), text="hi")
    assert caught.value.detail == (
        "The slack credential does not fit: webhook_url: "
        "The URL may not be called: only http:// and https:// are supported."
    )
