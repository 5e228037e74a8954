"""Logging in and out, accounts, machine tokens."""

from __future__ import annotations

import time
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import RedirectResponse, Response
from wattmesh_a2a.errors import UnauthorisedError, WattmeshError

from wattmesh_cloud.access import passwords
from wattmesh_cloud.access.door import Access
from wattmesh_cloud.access.model import PERMISSIONS, Principal
from wattmesh_cloud.access.oidc import Oidc
from wattmesh_cloud.api import models as m
from wattmesh_cloud.api.deps import PROBLEMS, Admin, Reader

_OIDC_COOKIE = "wattmesh_login"


def who_routes(access: Access, oidc: Oidc | None, time_zone: str, longest_s: int) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["who"], responses=PROBLEMS)

    def me_of(who: Principal) -> m.Me:
        return m.Me(
            name=who.name,
            kind=who.kind,
            role=who.role,
            tenant=who.tenant,
            permissions=sorted(PERMISSIONS[who.role]),
            csrf=who.csrf,
            time_zone=time_zone,
        )

    @routes.get("/me")
    async def get_me(who: Reader) -> m.Me:
        """Who I am, and the token that changes need."""
        return me_of(who)

    @routes.get("/login/methods")
    async def get_login_methods() -> m.LoginMethods:
        """How somebody may log in here."""
        return m.LoginMethods(password=True, oidc=oidc is not None, demo=access.demo)

    @routes.post("/login")
    async def login(request: Request, response: Response, wanted: m.Login) -> m.Me:
        """Log in with a local account; sets the session's cookie. Five tries a minute, for a name and for an address."""
        address = request.client.host if request.client is not None else "?"
        now = time.monotonic()
        wait = max(access.logins.take(f"name {wanted.name}", now), access.logins.take(f"address {address}", now))
        if wait:
            raise HTTPException(429, "too many tries; wait a minute", {"Retry-After": str(max(1, round(wait)))})
        found = access.store.user(wanted.name)
        known = found[1] if found is not None and not found[0].disabled else None
        if not await passwords.matches(wanted.password, known) or found is None:
            await access.note(f"user:{wanted.name}", "login", "refused", address=address)
            raise HTTPException(401, "name or password is wrong")
        user = found[0]
        identity, who = access.store.open_session(user.name, kind="user", tenant=user.tenant, role=user.role)
        await access.note(who.actor, "login", "done", address=address, tenant=who.tenant)
        response.headers["set-cookie"] = access.cookie_text(identity, longest_s=longest_s)
        return me_of(who)

    @routes.post("/logout")
    async def logout(who: Reader, response: Response) -> m.Done:
        """End this session."""
        if who.session is not None:
            access.store.close_session(who.session)
        response.headers["set-cookie"] = access.cookie_text("", longest_s=0)
        return m.Done(detail="logged out")

    _oidc_routes(routes, access, oidc, longest_s)
    _account_routes(routes, access)
    return routes


def _oidc_routes(routes: APIRouter, access: Access, oidc: Oidc | None, longest_s: int) -> None:
    @routes.get("/oidc/login", status_code=302, response_class=RedirectResponse)
    async def begin_oidc() -> Response:
        """Go to the identity provider."""
        if oidc is None:
            raise HTTPException(404, "no identity provider is configured (access.oidc)")
        url, browser = await oidc.begin()
        answer = RedirectResponse(url, 302)
        answer.set_cookie(
            _OIDC_COOKIE, browser, max_age=600, path="/api/v1/oidc", httponly=True, samesite="lax", secure=access.secure
        )
        return answer

    @routes.get("/oidc/callback", status_code=302, response_class=RedirectResponse)
    async def end_oidc(
        request: Request,
        state: Annotated[str, Query(max_length=500)] = "",
        code: Annotated[str, Query(max_length=2000)] = "",
        error: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        """Come back from the identity provider; leads to the fleet, or to the login page with what went wrong."""
        if oidc is None:
            raise HTTPException(404, "no identity provider is configured (access.oidc)")
        try:
            if error or not code:
                raise UnauthorisedError(f"the identity provider says: {error or 'nothing'}")
            who = await oidc.end(state, code, request.cookies.get(_OIDC_COOKIE, ""))
            access.store.upsert_oidc_user(who.name, tenant=who.tenant, role=who.role)
            found = access.store.user(who.name)
            if found is None or found[0].disabled:
                raise UnauthorisedError(f"{who.name} is switched off here; ask the administrator")
        except WattmeshError as problem:
            await access.note("user:?", "login.oidc", "refused", error=str(problem))
            return RedirectResponse(f"/login?problem={quote(str(problem))}", 302)
        identity, principal = access.store.open_session(who.name, kind="user", tenant=who.tenant, role=who.role)
        await access.note(principal.actor, "login.oidc", "done", tenant=principal.tenant)
        answer = RedirectResponse("/", 302)
        answer.headers["set-cookie"] = access.cookie_text(identity, longest_s=longest_s)
        return answer


def _account_routes(routes: APIRouter, access: Access) -> None:
    @routes.get("/users")
    async def list_users(who: Admin) -> list[m.UserRow]:
        """All accounts."""
        return [m.UserRow.model_validate(one) for one in access.store.users()]

    @routes.post("/users", status_code=201)
    async def add_user(who: Admin, wanted: m.NewUser) -> m.Done:
        """Add a local account."""
        access.store.add_user(
            wanted.name, tenant=wanted.tenant, role=wanted.role, password_hash=passwords.hashed(wanted.password)
        )
        await access.note(who.actor, "user.add", "done", user=wanted.name, role=str(wanted.role), tenant=wanted.tenant)
        return m.Done(detail=f"{wanted.name} may come in")

    @routes.patch("/users/{name}")
    async def change_user(who: Admin, name: m.Name, wanted: m.UserChange) -> m.Done:
        """Change an account; ends its sessions."""
        if name == who.name and (wanted.disabled or wanted.role not in {None, who.role}):
            raise HTTPException(409, "nobody takes their own rights away; another admin has to")
        hashed = None if wanted.password is None else passwords.hashed(wanted.password)
        if not access.store.change_user(name, role=wanted.role, disabled=wanted.disabled, password_hash=hashed):
            raise HTTPException(404, f"there is no user {name!r}")
        await access.note(who.actor, "user.change", "done", user=name, role=str(wanted.role), disabled=wanted.disabled)
        return m.Done(detail=f"{name} is changed and has to log in again")

    @routes.get("/tokens")
    async def list_tokens(who: Admin) -> list[m.TokenRow]:
        """Machine tokens, without the tokens."""
        return [m.TokenRow.model_validate(one) for one in access.store.tokens()]

    @routes.post("/tokens", status_code=201)
    async def add_token(who: Admin, wanted: m.NewToken) -> m.MadeToken:
        """Make a token for a program; it is shown this once."""
        token = access.store.add_token(
            wanted.id, tenant=wanted.tenant, role=wanted.role, valid_s=wanted.days * 86_400.0
        )
        await access.note(who.actor, "token.add", "done", token=wanted.id, role=str(wanted.role), tenant=wanted.tenant)
        return m.MadeToken(id=wanted.id, token=token)

    @routes.delete("/tokens/{name}")
    async def revoke_token(who: Admin, name: m.Name) -> m.Done:
        """Take a token back."""
        if not access.store.revoke_token(name):
            raise HTTPException(404, f"there is no token {name!r}")
        await access.note(who.actor, "token.revoke", "done", token=name)
        return m.Done(detail=f"{name} is no longer valid")
