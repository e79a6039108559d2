"""The data folder: what is generated, what is never overwritten, and who may use it."""

from __future__ import annotations

import base64
import shutil
import stat
from pathlib import Path

import pytest

from embedded.home import DATABASE_URL, MASTER_KEYS, REDIS_URL, SECRET_KEY, Home, InUse
from embedded.supervisor import FIRST_PAUSE, LONGEST_PAUSE, pause_before_restart
from engine.errors import ConfigurationError
from engine.settings import Settings

URLS = {DATABASE_URL: "postgresql://user:word@127.0.0.1:5432/fairlane", REDIS_URL: "redis://:word@127.0.0.1:6379/0"}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    for name in (DATABASE_URL, REDIS_URL, SECRET_KEY, MASTER_KEYS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FAIRLANE_DATA_DIR", str(tmp_path / "data"))
    return Home(tmp_path / "data")


def test_what_is_written_is_what_settings_read(home: Home) -> None:
    with home.locked():
        home.publish_urls(URLS)
    settings = Settings.load()
    assert settings.database_url == URLS[DATABASE_URL].replace("postgresql://", "postgresql+psycopg://")
    assert settings.redis_url == URLS[REDIS_URL]
    assert [len(key) for key in settings.master_key_ring.values()] == [32]


def test_only_the_owner_can_read_the_secrets(home: Home) -> None:
    with home.locked():
        home.publish_urls(URLS)
    assert stat.S_IMODE(home.env_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700


def test_keys_stay_as_they_are_when_servers_come_and_go(home: Home) -> None:
    with home.locked():
        home.publish_urls(URLS)
        before = home.read_env()
        home.withdraw_urls()
        between = home.read_env()
        home.publish_urls(URLS)
    assert home.read_env() == before
    assert between == {name: value for name, value in before.items() if name not in URLS}


def test_a_folder_that_was_removed_under_us_is_no_obstacle_to_stopping(home: Home) -> None:
    with home.locked():
        home.publish_urls(URLS)
        shutil.rmtree(home.folder)
        home.withdraw_urls()
    assert not home.folder.exists()


def test_two_folders_have_different_keys(home: Home, tmp_path: Path) -> None:
    other = Home(tmp_path / "other")
    for one in (home, other):
        with one.locked():
            one.publish_urls(URLS)
    assert home.read_env()[SECRET_KEY] != other.read_env()[SECRET_KEY]
    assert home.read_env()[MASTER_KEYS] != other.read_env()[MASTER_KEYS]


def test_a_key_that_the_environment_names_is_neither_generated_nor_copied(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "own:" + base64.b64encode(b"k" * 32).decode()
    monkeypatch.setenv(MASTER_KEYS, given)
    with home.locked():
        home.publish_urls(URLS)
    assert MASTER_KEYS not in home.read_env()
    assert SECRET_KEY in home.read_env()
    assert list(Settings.load().master_key_ring) == ["own"]


def test_a_folder_that_cannot_be_made_is_named_with_the_option_that_chooses_another(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--data") as refusal, Home(tmp_path / "file" / "data").locked():
        pytest.fail("a folder below a file")
    assert str(tmp_path / "file" / "data") in refusal.value.detail


def test_a_second_user_of_the_folder_is_refused_in_one_sentence_and_welcome_afterwards(home: Home) -> None:
    with home.locked(), pytest.raises(InUse) as refusal, Home(home.folder).locked():
        pytest.fail("two held the folder")
    assert "--data" in refusal.value.detail
    assert str(home.folder) in refusal.value.detail
    with Home(home.folder).locked():
        pass


def test_pauses_between_restarts_double_up_to_a_bound() -> None:
    pauses = [pause_before_restart(deaths) for deaths in range(1, 40)]
    assert pauses[:4] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE, 8 * FIRST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    assert pauses == sorted(pauses)
