"""`openweather.current`: the weather of a city now, from OpenWeather's current-weather API (``/data/2.5/weather``).

The API key travels in the query, as OpenWeather wants it; no message of this action shows a URL. Unknown cities and
refused keys are `Fatal` with OpenWeather's own sentence, its rate limit is `RetryLater`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import httpx
from pydantic import BaseModel, BeforeValidator, Field, SecretStr, StringConstraints, ValidationError

from actions.base import Connector, CredentialData, Input, as_text, object_schema
from actions.http import GuardedClient, Request
from actions.replies import excerpt, failure
from engine.errors import Fatal
from engine.ports import HttpReply, Json, StepContext

BASE = "https://api.openweathermap.org"

_NUMBER = {"type": "number"}
_TEXT = {"type": "string"}


class WeatherInput(Input):
    city: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1), BeforeValidator(as_text)] = Field(
        description="A city, such as London, or with its country: London,GB."
    )
    units: Literal["metric", "imperial", "standard"] = Field(
        default="metric", description="Celsius and m/s, Fahrenheit and mph, or Kelvin and m/s."
    )


class OpenWeatherCredential(CredentialData):
    api_key: SecretStr


class _Main(BaseModel):
    temp: float
    feels_like: float | None = None
    temp_min: float | None = None
    temp_max: float | None = None
    pressure: float | None = None
    humidity: float | None = None


class _Weather(BaseModel):
    main: str = ""
    description: str = ""


class _Wind(BaseModel):
    speed: float | None = None


class _System(BaseModel):
    country: str | None = None


class _Answer(BaseModel):
    """What is read of OpenWeather's answer."""

    main: _Main
    weather: list[_Weather] = Field(default_factory=list)
    wind: _Wind = Field(default_factory=_Wind)
    sys: _System = Field(default_factory=_System)
    name: str = ""
    dt: int | None = None


class CurrentWeather(Connector):
    name = "openweather.current"
    summary = "Reads the weather of a city now."
    service = "openweather"
    credential_required = True
    credential_model = OpenWeatherCredential
    has_effects = False
    input_model = WeatherInput
    output_schema = object_schema(
        {
            "temp": _NUMBER,
            "feels_like": _NUMBER,
            "temp_min": _NUMBER,
            "temp_max": _NUMBER,
            "humidity": {**_NUMBER, "description": "percent"},
            "pressure": {**_NUMBER, "description": "hPa"},
            "wind_speed": _NUMBER,
            "conditions": {**_TEXT, "description": "one word, such as Rain"},
            "description": {**_TEXT, "description": "such as light rain"},
            "city": _TEXT,
            "country": {**_TEXT, "description": "ISO 3166 code"},
            "units": _TEXT,
            "observed_at": {**_TEXT, "format": "date-time"},
        },
        required=("temp", "description", "city", "units"),
    )

    def __init__(self, client: GuardedClient, *, base: str | None = None) -> None:
        super().__init__(client)
        self._base = base or BASE

    def run(self, context: StepContext, parameters: WeatherInput) -> Json:
        key = self.secret(context, OpenWeatherCredential).api_key.get_secret_value()
        query = httpx.QueryParams({"q": parameters.city, "units": parameters.units, "appid": key})
        request = Request("GET", f"{self._base}/data/2.5/weather?{query}", {}, credential=True)
        reply = self.call(context, request)
        if reply.status != 200:
            raise failure(reply, subject="OpenWeather", detail=_message(reply))
        try:
            return _output(_Answer.model_validate_json(reply.body), parameters.units)
        except ValidationError:
            data = {"status": reply.status, "body": excerpt(reply.body)}
            raise Fatal("OpenWeather's answer cannot be read.", code="unexpected_answer", data=data) from None


def _output(answer: _Answer, units: str) -> dict[str, Json]:
    weather = answer.weather[0] if answer.weather else _Weather()
    output = {
        **answer.main.model_dump(),
        "wind_speed": answer.wind.speed,
        "conditions": weather.main,
        "description": weather.description,
        "city": answer.name,
        "country": answer.sys.country,
        "units": units,
        "observed_at": None if answer.dt is None else datetime.fromtimestamp(answer.dt, UTC).isoformat(),
    }
    return {name: value for name, value in output.items() if value is not None}


def _message(reply: HttpReply) -> str:
    """OpenWeather's own sentence, such as "city not found"."""
    try:
        answer: Any = json.loads(reply.body)
    except (ValueError, RecursionError):
        return ""
    return str(answer.get("message", "")).rstrip(".") if isinstance(answer, dict) else ""
