"""``wattmesh access``: accounts and tokens by hand, also the first admin."""

from __future__ import annotations

import argparse
import getpass
import sys
from datetime import UTC, datetime

from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.access import passwords
from wattmesh_cloud.access.model import Role, Tenants
from wattmesh_cloud.access.oidc import read_secret
from wattmesh_cloud.access.store import AccessStore
from wattmesh_cloud.config import load_cloud


def run(arguments: argparse.Namespace) -> int:
    """Do what the command line asks for; raises our errors with one clear line."""
    config = load_cloud(arguments.file)
    access = config.model.access
    tenants = Tenants(sites={name: frozenset(sites) for name, sites in access.tenants.items()})
    store = AccessStore(
        config.state / "access.sqlite",
        SystemClock(),
        tenants,
        idle_s=access.idle_min * 60,
        longest_s=access.longest_h * 3600,
    )
    try:
        return _done(arguments, store)
    finally:
        store.close()


def _done(arguments: argparse.Namespace, store: AccessStore) -> int:
    match arguments.action:
        case "users":
            for user in store.users():
                kind, state = "local" if user.local else "oidc", "disabled" if user.disabled else "active"
                print(f"{user.name}\t{user.tenant}\t{user.role}\t{kind}\t{state}")
        case "tokens":
            for token in store.tokens():
                until = datetime.fromtimestamp(token.expires_ns // 1_000_000_000, tz=UTC)
                print(f"{token.id}\t{token.tenant}\t{token.role}\tuntil {until:%Y-%m-%d}")
        case "add-user":
            hashed = passwords.hashed(_password(arguments))
            store.add_user(arguments.name, tenant=arguments.tenant, role=Role(arguments.role), password_hash=hashed)
            print(f"{arguments.name}: {arguments.role} of {arguments.tenant}")
        case "add-token":
            days = arguments.days * 86_400.0
            print(store.add_token(arguments.name, tenant=arguments.tenant, role=Role(arguments.role), valid_s=days))
        case "revoke-token":
            _known(store.revoke_token(arguments.name), "token", arguments.name)
        case "password":
            hashed = passwords.hashed(_password(arguments))
            _known(store.change_user(arguments.name, password_hash=hashed), "user", arguments.name)
        case _:
            disabled = arguments.action == "disable"
            _known(store.change_user(arguments.name, disabled=disabled), "user", arguments.name)
    return 0


def _known(found: bool, what: str, name: str) -> None:
    if not found:
        raise ConfigurationError(f"there is no {what} {name!r}")


def _password(arguments: argparse.Namespace) -> str:
    if arguments.password_file is not None:
        return read_secret(arguments.password_file)
    if not sys.stdin.isatty():
        raise ConfigurationError("nobody can be asked for the password here; use --password-file")
    return getpass.getpass("Password: ")
