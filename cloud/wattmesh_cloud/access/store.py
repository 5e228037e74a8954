"""Accounts, sessions and tokens on disk: hashes only, never a password, a session or a token."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConflictError, InvalidMessageError

from wattmesh_cloud.access.model import Principal, Role, Tenants

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users(
  name TEXT PRIMARY KEY, tenant TEXT NOT NULL, role TEXT NOT NULL, password TEXT, disabled INTEGER NOT NULL DEFAULT 0,
  created_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens(
  id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, role TEXT NOT NULL, created_ns INTEGER NOT NULL,
  expires_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions(
  digest TEXT PRIMARY KEY, user TEXT NOT NULL, kind TEXT NOT NULL, tenant TEXT NOT NULL, role TEXT NOT NULL, csrf TEXT NOT NULL,
  created_ns INTEGER NOT NULL, seen_ns INTEGER NOT NULL) WITHOUT ROWID;
"""
_SESSIONS_AT_MOST = 10_000
_SEEN_EVERY_NS = 60 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account as it may be shown."""

    name: str
    tenant: str
    role: Role
    local: bool
    """Whether it has a password here; the others come by OpenID Connect."""
    disabled: bool
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A machine's token as it may be shown: without it."""

    id: str
    tenant: str
    role: Role
    created_ns: int
    expires_ns: int


class AccessStore:
    """One SQLite file; calls are short and may be made on the event loop.

    Args:
        path: The file, made for its owner alone.
        clock: Real time: expiry is for people, whatever a simulation's clock says.
        tenants: Which sites belong to whom.
        idle_s: A session that is not used for so long ends.
        longest_s: No session lasts longer.
    """

    def __init__(self, path: Path, clock: Clock, tenants: Tenants, *, idle_s: float, longest_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.chmod(0o600)
        self._clock, self.tenants = clock, tenants
        self._idle_ns, self._longest_ns = round(idle_s * NS_PER_S), round(longest_s * NS_PER_S)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript(_SCHEMA)
        self._db.execute("PRAGMA journal_mode=WAL")

    # -- accounts

    def add_user(self, name: str, *, tenant: str, role: Role, password_hash: str | None) -> None:
        """Add an account; raises :class:`ConflictError` where the name is taken."""
        if not self.tenants.known(tenant):
            raise InvalidMessageError(
                f"there is no tenant {tenant!r}; it has to stand in the cloud's file (access.tenants)"
            )
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO users VALUES(?, ?, ?, ?, 0, ?)",
                    (name, tenant, str(role), password_hash, self._clock.utc_ns()),
                )
            except sqlite3.IntegrityError as error:
                raise ConflictError(f"there is a user {name!r} already") from error

    def upsert_oidc_user(self, name: str, *, tenant: str, role: Role) -> None:
        """What an identity provider says of somebody now; an account that was switched off here stays so."""
        with self._lock:
            self._db.execute(
                "INSERT INTO users VALUES(?, ?, ?, NULL, 0, ?) ON CONFLICT(name) DO UPDATE SET tenant=excluded.tenant, "
                "role=excluded.role WHERE password IS NULL",
                (name, tenant, str(role), self._clock.utc_ns()),
            )

    def user(self, name: str) -> tuple[User, str | None] | None:
        """An account and its password's hash."""
        with self._lock:
            row = self._db.execute("SELECT * FROM users WHERE name=?", (name,)).fetchone()
        return None if row is None else (_user(row), row[3])

    def users(self) -> list[User]:
        """All accounts by name."""
        with self._lock:
            return [_user(row) for row in self._db.execute("SELECT * FROM users ORDER BY name")]

    def change_user(
        self, name: str, *, role: Role | None = None, disabled: bool | None = None, password_hash: str | None = None
    ) -> bool:
        """Change an account and end its sessions; false where there is none."""
        with self._lock:
            found = self._db.execute(
                "UPDATE users SET role=COALESCE(?, role), disabled=COALESCE(?, disabled), password=COALESCE(?, password) "
                "WHERE name=?",
                (None if role is None else str(role), disabled, password_hash, name),
            ).rowcount
            self._db.execute("DELETE FROM sessions WHERE user=?", (name,))
        return found > 0

    # -- tokens

    def add_token(self, identity: str, *, tenant: str, role: Role, valid_s: float) -> str:
        """Make a token and give it once; only its hash is kept. Raises :class:`ConflictError` for a name that is taken."""
        if not self.tenants.known(tenant):
            raise InvalidMessageError(
                f"there is no tenant {tenant!r}; it has to stand in the cloud's file (access.tenants)"
            )
        token = f"wm_{secrets.token_urlsafe(32)}"
        now = self._clock.utc_ns()
        with self._lock:
            try:
                self._db.execute(
                    "INSERT INTO tokens VALUES(?, ?, ?, ?, ?, ?)",
                    (identity, _digest(token), tenant, str(role), now, now + round(valid_s * NS_PER_S)),
                )
            except sqlite3.IntegrityError as error:
                raise ConflictError(f"there is a token {identity!r} already; revoke it first") from error
        return token

    def tokens(self) -> list[Token]:
        """All tokens by name, expired ones too."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, tenant, role, created_ns, expires_ns FROM tokens ORDER BY id"
            ).fetchall()
        return [
            Token(id=row[0], tenant=row[1], role=Role(row[2]), created_ns=row[3], expires_ns=row[4]) for row in rows
        ]

    def revoke_token(self, identity: str) -> bool:
        """Take a token back; false where there is none."""
        with self._lock:
            return self._db.execute("DELETE FROM tokens WHERE id=?", (identity,)).rowcount > 0

    def of_token(self, token: str) -> Principal | None:
        """Who a token belongs to; none where it is unknown or expired."""
        with self._lock:
            row = self._db.execute(
                "SELECT id, tenant, role FROM tokens WHERE digest=? AND expires_ns>?",
                (_digest(token), self._clock.utc_ns()),
            ).fetchone()
        if row is None:
            return None
        return Principal(
            name=row[0], kind="token", role=Role(row[2]), tenant=row[1], sites=self.tenants.sites_of(row[1])
        )

    # -- sessions

    def open_session(self, user: str, *, kind: str, tenant: str, role: Role) -> tuple[str, Principal]:
        """A new session: what the cookie holds, and who it is."""
        identity, csrf, now = secrets.token_urlsafe(32), secrets.token_urlsafe(24), self._clock.utc_ns()
        with self._lock:
            self._db.execute("DELETE FROM sessions WHERE seen_ns<? OR created_ns<?", self._oldest(now))
            count = self._db.execute("SELECT COUNT(*) FROM sessions").fetchone()[0]
            if count >= _SESSIONS_AT_MOST:
                self._db.execute(
                    "DELETE FROM sessions WHERE digest IN (SELECT digest FROM sessions ORDER BY seen_ns LIMIT ?)",
                    (count - _SESSIONS_AT_MOST + 1,),
                )
            self._db.execute(
                "INSERT INTO sessions VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
                (_digest(identity), user, kind, tenant, str(role), csrf, now, now),
            )
        return identity, self._principal(user, kind, tenant, role, _digest(identity), csrf)

    def of_session(self, identity: str) -> Principal | None:
        """Who a session belongs to; none where it is unknown, expired, or its account was switched off."""
        return self._of_digest(_digest(identity), touch=True)

    def still_open(self, digest: str) -> bool:
        """Whether a session of :attr:`Principal.session` goes on; does not make it last longer."""
        return self._of_digest(digest, touch=False) is not None

    def close_session(self, digest: str) -> None:
        """Log out."""
        with self._lock:
            self._db.execute("DELETE FROM sessions WHERE digest=?", (digest,))

    def _of_digest(self, digest: str, *, touch: bool) -> Principal | None:
        now = self._clock.utc_ns()
        with self._lock:
            row = self._db.execute(
                "SELECT s.user, s.kind, s.tenant, s.role, s.csrf, s.seen_ns, u.tenant, u.role FROM sessions s "
                "LEFT JOIN users u ON u.name=s.user AND u.disabled=0 WHERE s.digest=? AND s.seen_ns>=? AND s.created_ns>=?",
                (digest, *self._oldest(now)),
            ).fetchone()
            if row is None or (row[1] == "user" and row[6] is None):
                return None
            if touch and now - row[5] > _SEEN_EVERY_NS:
                self._db.execute("UPDATE sessions SET seen_ns=? WHERE digest=?", (now, digest))
        tenant, role = (row[6], row[7]) if row[1] == "user" else (row[2], row[3])
        return self._principal(row[0], row[1], tenant, Role(role), digest, row[4])

    def _principal(self, user: str, kind: str, tenant: str, role: Role, digest: str, csrf: str) -> Principal:
        sites = self.tenants.sites_of(tenant)
        return Principal(name=user, kind=kind, role=role, tenant=tenant, sites=sites, session=digest, csrf=csrf)

    def _oldest(self, now: int) -> tuple[int, int]:
        return now - self._idle_ns, now - self._longest_ns

    def close(self) -> None:
        """Release the file."""
        self._db.close()


def _digest(secret: str) -> str:
    """Of 256 random bits: a plain hash cannot be guessed backwards, and finding it takes no time that tells something."""
    return hashlib.sha256(secret.encode()).hexdigest()


def _user(row: tuple[str, str, str, str | None, int, int]) -> User:
    return User(
        name=row[0],
        tenant=row[1],
        role=Role(row[2]),
        local=row[3] is not None,
        disabled=bool(row[4]),
        created_ns=row[5],
    )
