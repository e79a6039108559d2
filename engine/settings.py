"""The one place that reads the environment: every ``FAIRLANE_*`` variable, its type, its default and its check.

Values come from the process environment, else from the file ``env`` in the data folder (``FAIRLANE_DATA_DIR``, default
``.fairlane``) that ``fairlane up`` writes. A missing or bad value is a `ConfigurationError` with one sentence for each
variable; no process starts half-configured. Secrets are masked by type.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
from datetime import timedelta
from email.utils import parseaddr
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.errors import ConfigurationError

PREFIX = "FAIRLANE_"
MASTER_KEY_BYTES = 32
SECRET_KEY_MIN_LENGTH = 32


def data_dir() -> Path:
    """The folder of the embedded servers and of the generated ``env`` file."""
    return Path(os.environ.get(f"{PREFIX}DATA_DIR", ".fairlane"))


class Settings(BaseSettings):
    """Everything that an operator can set. Frozen; build it with `Settings.load`, pass it down."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    database_url: str = Field(description="Postgres 15 or newer, postgresql://user:password@host:port/name")
    redis_url: str = Field(description="Redis 6.2 or newer, redis://[:password@]host:port/number")
    secret_key: SecretStr = Field(description="signs tokens; at least 32 characters")
    master_keys: SecretStr = Field(description="id:base64 of 32 bytes, comma-separated; the first encrypts")
    allowed_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="CIDRs or host:port that actions may reach although private"
    )
    service_urls: Annotated[dict[str, str], NoDecode] = Field(
        default={}, description="slack=URL,openweather=URL,...: other base URLs of outside services"
    )
    public_url: str = Field(default="http://127.0.0.1:8000", description="how callers reach the API")
    webhook_max_bytes: int = Field(default=1024 * 1024, gt=0, description="largest webhook body, bytes")
    metrics_tenant_limit: int = Field(default=50, ge=0, description="tenants that get a label of their own")
    log_format: Literal["console", "json"] = Field(default="console", description="how log lines look")
    organizations: Literal["new", "all"] = Field(
        default="all", description="who has organizations: new sign-ups and who was let in, or all"
    )
    smtp_url: SecretStr | None = Field(
        default=None,
        description="the mail server for invitations and notices: smtp://user:password@host:587, or smtps://",
    )
    mail_from: str = Field(default="Fairlane <fairlane@localhost>", description="the sender of mails")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="comma-separated origins whose pages may call the API, such as https://app.example.com"
    )
    token_ttl: timedelta = Field(default=timedelta(days=7), description="how long a login token holds, seconds")
    database_pool_size: int = Field(default=10, gt=0, description="connections to Postgres per process")
    lease_seconds: float = Field(default=30.0, gt=0, description="how long a dead worker's runs stay its own")
    metrics_token: SecretStr | None = Field(
        default=None, description="what a scrape of /metrics must send as its bearer token; without one, nothing"
    )
    stripe_key: SecretStr | None = Field(
        default=None, description="reports executions to Stripe: a key that may write meter events, sk_... or rk_..."
    )
    stripe_meter: str = Field(default="fairlane_executions", description="the event name of the meter at Stripe")
    otel_endpoint: str | None = Field(
        default=None, description="where traces go, OTLP over HTTP, such as http://collector:4318; without one, nowhere"
    )

    @field_validator("database_url")
    @classmethod
    def _postgres_only(cls, url: str) -> str:
        for scheme in ("postgresql+psycopg://", "postgresql://", "postgres://"):
            if url.startswith(scheme):
                return "postgresql+psycopg://" + url.removeprefix(scheme)
        raise ValueError("want a Postgres URL such as postgresql://user:password@host:5432/fairlane")

    @field_validator("redis_url")
    @classmethod
    def _redis_only(cls, url: str) -> str:
        if not url.startswith(("redis://", "rediss://", "sentinel://")):
            raise ValueError("want a Redis URL such as redis://host:6379/0 (or rediss://, sentinel://)")
        return url

    @field_validator("secret_key")
    @classmethod
    def _long_secret(cls, key: SecretStr) -> SecretStr:
        if len(key.get_secret_value()) < SECRET_KEY_MIN_LENGTH:
            raise ValueError(f"is shorter than {SECRET_KEY_MIN_LENGTH} characters")
        return key

    @field_validator("master_keys")
    @classmethod
    def _whole_master_keys(cls, keys: SecretStr) -> SecretStr:
        parse_master_keys(keys.get_secret_value())
        return keys

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _split_networks(cls, value: Any) -> Any:
        items = _split(value)
        for item in items if isinstance(items, tuple) else ():
            _check_network(item)
        return items

    @field_validator("smtp_url")
    @classmethod
    def _smtp_only(cls, url: SecretStr | None) -> SecretStr | None:
        parts = urlsplit(url.get_secret_value()) if url is not None else None
        if parts is not None and (parts.scheme not in ("smtp", "smtps") or not parts.hostname):
            raise ValueError("want smtp://[user:password@]host[:port], or smtps:// for TLS from the first byte")
        return url

    @field_validator("mail_from")
    @classmethod
    def _one_sender(cls, text: str) -> str:
        if "@" not in parseaddr(text)[1] or not text.isprintable():
            raise ValueError("want an address such as Fairlane <fairlane@example.com>")
        return text

    @field_validator("metrics_token")
    @classmethod
    def _token_of_a_header(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and re.fullmatch(r"[!-~]+", token.get_secret_value()) is None:
            raise ValueError("is empty, or has a space or what is not ASCII; want a long random word, or leave it out")
        return token

    @field_validator("stripe_key")
    @classmethod
    def _plausible_key(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and re.fullmatch(r"[sr]k_[!-~]+", key.get_secret_value()) is None:
            raise ValueError("want a secret or restricted key of Stripe, sk_... or rk_...")
        return key

    @field_validator("otel_endpoint")
    @classmethod
    def _collector(cls, url: str | None) -> str | None:
        if url is not None and re.fullmatch(r"https?://[^/?#@\s]+[^?#@\s]*", url) is None:
            raise ValueError("want the base URL of a collector, such as http://collector:4318, without /v1/traces")
        return url and url.rstrip("/").removesuffix("/v1/traces")

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        items = _split(value)
        for item in items if isinstance(items, tuple) else ():
            if not re.fullmatch(r"https?://[^/?#*@\s]+", item):
                raise ValueError(f"{item!r} is not an origin such as https://app.example.com")
        return items

    @field_validator("service_urls", mode="before")
    @classmethod
    def _split_services(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.partition("=") for item in _split(value)]
        for name, _, url in pairs:
            if not name or not url.startswith(("http://", "https://")):
                raise ValueError(f"{name or 'an entry'} has no URL; want slack=https://...,openweather=https://...")
        return {name: url.rstrip("/") for name, _, url in pairs}

    @property
    def broker_url(self) -> str:
        """The Redis URL with the scheme of the fair-share transport."""
        return f"fair{self.redis_url}"

    @property
    def master_key_ring(self) -> dict[str, bytes]:
        """Master key id to its 32 bytes, in the order given: the first encrypts."""
        return parse_master_keys(self.master_keys.get_secret_value())

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read environment and ``env`` file; `overrides` win. Raises ConfigurationError naming each variable."""
        env_file = data_dir() / "env"
        options: dict[str, Any] = {"_env_file": env_file if env_file.is_file() else None, **overrides}
        try:
            return cls(**options)
        except ValidationError as error:
            raise ConfigurationError(" ".join(_sentence(fault) for fault in error.errors())) from None


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings.load()


def parse_master_keys(text: str) -> dict[str, bytes]:
    """``id:base64,id:base64`` to a dict in that order. Raises ValueError naming the bad entry, never its value."""
    ring: dict[str, bytes] = {}
    for number, entry in enumerate(_split(text), start=1):
        key_id, _, encoded = entry.partition(":")
        try:
            key = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise ValueError(f"entry {number} is not base64; want id:base64 of {MASTER_KEY_BYTES} bytes") from None
        if not key_id or len(key) != MASTER_KEY_BYTES:
            raise ValueError(f"entry {number} is not id:base64 of {MASTER_KEY_BYTES} bytes")
        if key_id in ring:
            raise ValueError(f"the id of entry {number} stands twice")
        ring[key_id] = key
    if not ring:
        raise ValueError(f"is empty; want id:base64 of {MASTER_KEY_BYTES} bytes")
    return ring


def _split(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return tuple(item.strip() for item in value.split(",") if item.strip())


def _check_network(item: str) -> None:
    host, colon, port = item.rpartition(":")
    if colon and host and port.isdigit():
        return
    try:
        ipaddress.ip_network(item, strict=False)
    except ValueError:
        raise ValueError(f"{item!r} is neither a network such as 10.0.0.0/8 nor host:port") from None


def _sentence(fault: Any) -> str:
    name = PREFIX + str(fault["loc"][0]).upper() if fault["loc"] else PREFIX + "*"
    if fault["type"] == "missing":
        field = Settings.model_fields[str(fault["loc"][0])]
        return f"{name} is not set: {field.description}."
    return f"{name}: {fault['msg'].removeprefix('Value error, ')}."
