"""Passwords: Argon2id for what is stored today, bcrypt for what the multi-user system stored.

`verify` says in the same breath what the hash should be replaced by, so that old ones vanish at the next login. It
costs the same time when there is no account. A stored hash that nobody can read never matches. Both functions take a
tenth of a second and 64 MiB: call them off the event loop, and few at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from pwdlib.hashers.bcrypt import BcryptHasher

from engine.common_passwords import COMMON_PASSWORDS

MINIMUM_LENGTH = 8
_KEYBOARD = "1234567890 abcdefghijklmnopqrstuvwxyz qwertyuiop asdfghjkl zxcvbnm 01234567890123456789"
MAXIMUM_LENGTH = 1024
BCRYPT_BYTES = 72
"""bcrypt never looked further; its library refuses more instead of cutting, as the one that made the old hashes did."""

_argon2 = Argon2Hasher()
_bcrypt = BcryptHasher()
_hashes = PasswordHash((_argon2,))


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the password is right, and the hash to store instead of the old one, if any."""

    right: bool
    better_hash: str | None = None


WRONG = Verdict(right=False)


def weakness(password: str, *, email: str = "") -> str | None:
    """Why nobody should choose this password: a common one, or one that says whose it is. None when it may be."""
    plain = password.casefold().strip()
    if plain in COMMON_PASSWORDS:
        return "is one of the passwords that are tried first; choose another"
    if len(set(plain)) <= 2 or plain in _KEYBOARD or plain in _KEYBOARD[::-1]:
        return "is too regular; choose another"
    if plain in (email.casefold(), email.casefold().partition("@")[0]):
        return "is your email; choose another"
    return None


def hash_password(password: str) -> str:
    """The Argon2id hash to store."""
    return _hashes.hash(password)


def verify(password: str, stored: str | None) -> Verdict:
    """Compare with the stored hash; None stands for an account that does not exist, and takes as long."""
    if stored is None:
        _argon2.verify(password, _nobody())
        return WRONG
    if BcryptHasher.identify(stored):
        return _verify_bcrypt(password, stored)
    try:
        right, better = _hashes.verify_and_update(password, stored)
    except UnknownHashError:
        return verify(password, None)
    return Verdict(right, better)


def _verify_bcrypt(password: str, stored: str) -> Verdict:
    try:
        right = _bcrypt.verify(password.encode()[:BCRYPT_BYTES], stored)
    except ValueError:  # a hash with impossible parameters
        right = False
    # Hashed anew even when it is wrong: else the shorter time would tell who has an account from the old system.
    better = hash_password(password)
    return Verdict(right=True, better_hash=better) if right else WRONG


@cache
def _nobody() -> str:
    return hash_password("the hash of an account that does not exist")
