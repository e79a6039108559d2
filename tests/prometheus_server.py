"""A real Prometheus for tests: the one on the PATH, or the package of this machine's Debian, unpacked into a cache."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from embedded.ports import free_port
from tests.installation import wait_for

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fairlane-tests"
NEEDED = ("prometheus", "promtool")


@dataclass(frozen=True)
class Programs:
    """Where they are."""

    prometheus: str
    promtool: str


def programs() -> Programs:
    """Skips the test, and says why, where they neither are nor can be had."""
    found = [shutil.which(name) for name in NEEDED]
    if not all(found):
        found = [str(_unpacked() / name) for name in NEEDED]
    return Programs(*map(str, found))


def _unpacked() -> Path:
    """The folder with the programs of Debian's package; nothing is installed, and no right is needed."""
    kept = CACHE / "prometheus"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            if not all(map(shutil.which, ("apt-get", "dpkg"))):
                pytest.skip("Neither prometheus and promtool nor apt-get is here, which could fetch them.")
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                _fetch(Path(folder))
                (Path(folder) / "unpacked").rename(kept)
    return kept / "usr" / "bin"


def _fetch(folder: Path) -> None:
    """On a new machine apt does not know any package yet, which only root can change."""
    download = ["apt-get", "-q", "download", "prometheus"]
    done = _run(download, folder)
    if done.returncode and os.geteuid() == 0:
        _run(["apt-get", "-q", "update"], folder)
        done = _run(download, folder)
    if done.returncode:
        pytest.skip(f"prometheus is not here, and apt-get cannot fetch it: {done.stderr.strip()[-300:]}")
    (package,) = folder.glob("prometheus_*.deb")
    subprocess.run(["dpkg", "-x", package, folder / "unpacked"], check=True)


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90)


@dataclass(frozen=True)
class Prometheus:
    """One that runs."""

    client: httpx.Client

    def get(self, path: str, **parameters: Any) -> Any:
        answer = self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def values(self, expression: str) -> list[float]:
        """Of every series that the expression has now; those that are no number left out."""
        found = [float(row["value"][1]) for row in self.get("query", query=expression)["result"]]
        return [value for value in found if not math.isnan(value)]


@contextmanager
def running_prometheus(program: str, config: Path, folder: Path) -> Iterator[Prometheus]:
    """On a free port of loopback, until the block ends."""
    port = free_port()
    address = f"127.0.0.1:{port}"
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder}", f"--web.listen-address={address}"]
    log = folder / "log"
    folder.mkdir()
    with log.open("wb") as output:
        process = subprocess.Popen([program, *options], stdout=output, stderr=output)
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
            wait_for(lambda: process.poll() is not None or _is_ready(client), "Prometheus")
            assert process.poll() is None, log.read_text()
            yield Prometheus(client)
    finally:
        process.kill()
        process.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.HTTPError:
        return False
