"""The door: who may do what (role × endpoint × tenant, all of them), sessions, forgery, pace, headers, audit."""

import base64
import hashlib
import json
import re
import time
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey
from wattmesh_a2a.errors import ConflictError, InvalidMessageError, UnauthorisedError, UnavailableError
from wattmesh_cloud.access import oidc as oidc_module
from wattmesh_cloud.access import passwords
from wattmesh_cloud.access.config import OidcModel
from wattmesh_cloud.access.limits import Buckets
from wattmesh_cloud.access.model import Role
from wattmesh_cloud.access.oidc import Oidc
from wattmesh_cloud.api import create_api
from wattmesh_cloud.audit import verify

PASSWORD = "correct horse battery"  # a well-known one of a comic strip

# Who may do what, written by hand and not read from the code: R everybody who is logged in, O operators, T traders, E engineers,
# A admins; an H behind it: of the fleet's operator alone. "-" asks nobody who they are.
EXPECTED = {
    "get_health": "-", "get_login_methods": "-", "login": "-", "begin_oidc": "-", "end_oidc": "-",
    "get_me": "R", "logout": "R",
    "list_users": "AH", "add_user": "AH", "change_user": "AH", "list_tokens": "AH", "add_token": "AH", "revoke_token": "AH",
    "list_sites": "R", "get_site": "R", "list_assets": "R", "list_flows": "R", "list_readings": "R", "list_forecasts": "R",
    "get_plan": "R", "list_decisions": "R", "list_intervals": "R", "list_settlements": "R", "list_site_alarms": "R",
    "list_site_frequency_events": "R", "list_alarms": "R", "list_frequency_events": "R", "acknowledge_alarm": "O",
    "get_market": "R", "list_products": "R", "get_depth": "R", "list_slots": "R", "list_trades": "R", "list_candles": "R",
    "get_index": "R", "get_analytics": "R", "list_positions": "R", "list_orders": "R", "place_orders": "T",
    "cancel_orders": "T",
    "get_grid": "R", "list_grid_status": "R", "list_demand_response": "R",
    "list_agents": "R", "list_registry": "RH", "list_areas": "R", "list_agent_decisions": "R",
    "list_command_kinds": "R", "list_commands": "R", "ask_command": "R", "get_command": "R", "confirm_command": "R",
    "reject_command": "R",
    "list_jobs": "R", "get_job": "R", "get_job_file": "R",
    "list_gateways": "R", "get_system": "RH", "list_audit": "AH", "verify_audit": "AH", "get_metrics": "RH",
    "get_live": "R",
    "get_frequency_samples": "R", "get_event_trace": "R", "list_devices": "R",
    "list_grid_areas": "RH", "list_warnings": "RH", "get_emergencies": "RH", "ask_emergency": "OH", "confirm_emergency": "OH",
    "release_emergency": "OH",
    "list_conversations": "R", "get_conversation": "R",
    "list_agent_records": "R", "get_switch": "R", "list_approvals": "RH", "approve_proposal": "OH", "refuse_proposal": "OH",
    "propose": "OH", "ask_agents": "R",
    "get_report": "R", "make_report": "R", "list_reports": "R", "get_report_file": "R",
    "get_lab": "EH", "start_fault": "EH", "start_disturbance": "EH", "clear_lab": "EH",
}  # fmt: skip
ROLES = {"R": set(Role), "O": {Role.OPERATOR, Role.ADMIN}, "T": {Role.TRADER, Role.ADMIN}, "E": {Role.ENGINEER, Role.ADMIN},
         "A": {Role.ADMIN}}  # fmt: skip
OF_A_SITE = re.compile(r"/sites/\{site_id\}")


def operations(api):
    """(name, method, path) of everything that the description tells of."""
    return [
        (operation["operationId"], method, path)
        for path, methods in api.openapi()["paths"].items()
        for method, operation in methods.items()
    ]


def filled(path, site="ann"):
    values = {
        "site_id": site,
        "command_id": "0123456789ab",
        "job_id": "0123456789ab",
        "name": "nobody",
        "alarm_id": "a",
    }
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], "x"), path)


@pytest.fixture
async def ask(api, token):
    """Send a request as a role of a tenant; none for nobody."""
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def send(method, path, role=None, tenant="fleet", **more):
            headers = {} if role is None else {"Authorization": f"Bearer {token(role, tenant)}"}
            headers |= more.pop("headers", {})
            if path == "/api/v1/live":
                path += "?topic=nothing"  # 422 for whoever may: a stream would not end
            return await client.request(method.upper(), path, headers=headers, **more)

        yield send


def test_the_table_knows_every_operation(api):
    assert {name for name, _, _ in operations(api)} == set(EXPECTED)


@pytest.mark.parametrize("tenant", ["fleet", "acme", "gone"])
@pytest.mark.parametrize("role", [None, *Role])
async def test_the_authorisation_matrix(api, ask, access, role, tenant):
    """Every operation, for every role of the operator, of a tenant, and of a tenant that was taken out of the file."""
    if tenant == "gone":
        access.store.tenants = type(access.store.tenants)(sites={"acme": frozenset({"ann"}), "gone": frozenset()})
    wrong = []
    for name, method, path in operations(api):
        rule = EXPECTED[name]
        answer = await ask(method, filled(path), None if role is None else str(role), tenant)
        if rule == "-":
            right = answer.status_code not in {401, 403} or (name == "login" and answer.status_code == 422)
        elif role is None:
            right = answer.status_code == 401
        elif role not in ROLES[rule[0]] or (rule.endswith("H") and tenant != "fleet"):
            right = answer.status_code == 403
        elif OF_A_SITE.search(path) and tenant == "gone":
            right = answer.status_code in {404, 422}
        else:
            right = answer.status_code not in {401, 403} and answer.status_code in {*range(500), 503}
        if not right:
            wrong.append((name, answer.status_code, answer.text[:100]))
    assert wrong == []


async def test_a_tenant_finds_nothing_of_another(api, ask):
    """What belongs to bob is not there for ann's tenant: not by name, not in any list."""
    for name, method, path in operations(api):
        if OF_A_SITE.search(path) and method == "get":
            query = "?column=a.b&start_ns=0&end_ns=9" if name == "list_readings" else ""
            other = await ask(method, filled(path, "bob") + query, "admin", "acme")
            nobody = await ask(method, filled(path, "eve") + query, "admin", "acme")
            assert (other.status_code, nobody.status_code) == (404, 404), name
            assert other.text.replace("bob", "eve") == nobody.text, "another's site looks as one that is not there"
        elif method == "get" and EXPECTED[name] == "R" and "{" not in path and not path.endswith("/live"):
            query = {
                "get_depth": "?slot_ns=0",
                "get_index": "?start_ns=0&end_ns=9",
                "get_report": "?period=day&start=2023-11-14",
            }.get(name, "")
            answer = await ask(method, path + query, "admin", "acme")
            assert answer.status_code in {200, 404}, name
            assert "bob" not in answer.text, name
            assert "cem" not in answer.text, name


async def test_a_tenant_cannot_order_command_or_watch_for_another(ask, clock):
    order = {"client_order_id": "x", "side": "buy", "quantity_wh": 10, "price_ticks": 5}
    body = {"site_id": "bob", "slot_start_ns": clock.utc_ns(), "orders": [order]}
    assert (await ask("post", "/api/v1/market/orders", "admin", "acme", json=body)).status_code == 404
    body = {"site_id": "bob", "slot_start_ns": clock.utc_ns()}
    assert (await ask("post", "/api/v1/market/orders/cancel", "admin", "acme", json=body)).status_code == 404
    halt = {"kind": "market.halt", "reason": "for fun", "idempotency_key": "aaaaaaaa"}
    answer = await ask("post", "/api/v1/commands", "admin", "acme", json=halt)
    assert (answer.status_code, answer.json()["detail"]) == (403, "this belongs to the operator of the fleet")


async def test_every_change_is_written_down(api, ask, access, services):
    """Every operation that is no GET leaves what was begun and what came of it in the audit log, whose chain stays whole."""
    for name, method, path in operations(api):
        if method != "get" and name != "login":
            before = access.audit.anchor()["entries"]
            await ask(method, filled(path), "admin")
            lines = services.audit.read_text().splitlines()[int(before) :]
            entries = [json.loads(line) for line in lines]
            assert entries[0]["outcome"] == "begun", name
            assert entries[-1]["outcome"] in {"done", "refused"}, name
            assert entries[0]["actor"] == "token:fleet-admin"
            assert filled(path) in entries[0]["action"]
    assert verify(services.audit.read_bytes()).fault is None


async def test_what_cannot_be_written_down_is_not_done(ask, access, view, monkeypatch):
    def full(*_):
        raise UnavailableError("the disk is full")

    monkeypatch.setattr(access.audit, "write", full)
    halt = {"kind": "market.halt", "reason": "for fun", "idempotency_key": "aaaaaaaa"}
    answer = await ask("post", "/api/v1/commands", "operator", json=halt)
    assert (answer.status_code, answer.json()["detail"]) == (503, "the disk is full")
    assert view.market.engine.halted is None


# -- sessions, cookies, forgery


@pytest.fixture
async def browser(api, access):
    """A browser of ann, an operator who has logged in."""
    access.store.add_user("ann", tenant="fleet", role=Role.OPERATOR, password_hash=passwords.hashed(PASSWORD))
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.post("/api/v1/login", json={"name": "ann", "password": PASSWORD})
        assert answer.status_code == 200, answer.text
        client.csrf = answer.json()["csrf"]
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        yield client


HALT = {"kind": "market.halt", "reason": "for fun", "idempotency_key": "aaaaaaaa"}


async def test_a_session_may_read_and_with_its_token_change(browser, view):
    assert (await browser.get("/api/v1/me")).json()["role"] == "operator"
    assert (await browser.post("/api/v1/commands", json=HALT)).status_code == 403
    assert view.market.engine.halted is None
    done = await browser.post("/api/v1/commands", json=HALT, headers={"X-CSRF-Token": browser.csrf})
    assert (done.status_code, done.json()["state"]) == (201, "done")
    assert view.market.engine.halted == "user:ann: by hand"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_a_change_from_another_page_is_refused_even_with_the_token(browser, headers):
    answer = await browser.post("/api/v1/commands", json=HALT, headers={"X-CSRF-Token": browser.csrf, **headers})
    assert (answer.status_code, answer.json()["detail"]) == (403, "this request comes from another site's page")


async def test_a_session_ends_idle_late_at_logout_and_with_its_account(browser, real, access):
    who = (await browser.get("/api/v1/me")).status_code
    assert who == 200
    await real.advance(1790)
    assert (await browser.get("/api/v1/me")).status_code == 200
    await real.advance(1790)
    assert (await browser.get("/api/v1/me")).status_code == 200, "whoever works stays"
    await real.advance(1801)
    assert (await browser.get("/api/v1/me")).status_code == 401
    for _ in range(2):
        answer = await browser.post("/api/v1/login", json={"name": "ann", "password": PASSWORD})
    token = answer.json()["csrf"]
    assert (await browser.post("/api/v1/logout", json={}, headers={"X-CSRF-Token": token})).status_code == 200
    assert (await browser.get("/api/v1/me")).status_code == 401
    await browser.post("/api/v1/login", json={"name": "ann", "password": PASSWORD})
    access.store.change_user("ann", disabled=True)
    assert (await browser.get("/api/v1/me")).status_code == 401
    assert (await browser.post("/api/v1/login", json={"name": "ann", "password": PASSWORD})).status_code == 401


async def test_nobody_stays_longer_than_the_longest(browser, real):
    for _ in range(29):
        await real.advance(1500)
        await browser.get("/api/v1/me")
    assert (await browser.get("/api/v1/me")).status_code == 401, "43,500 s after logging in"


async def test_a_changed_role_holds_at_once(browser, access):
    access.store._db.execute("UPDATE users SET role='viewer'")
    answer = await browser.post("/api/v1/commands", json=HALT, headers={"X-CSRF-Token": browser.csrf})
    assert answer.status_code == 403


async def test_wrong_passwords_are_slow_few_and_tell_nothing(api, access):
    access.store.add_user("ann", tenant="fleet", role=Role.VIEWER, password_hash=passwords.hashed(PASSWORD))
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        texts = set()
        for name in ("ann", "nobody", "ann", "nobody", "ann"):
            answer = await client.post("/api/v1/login", json={"name": name, "password": "wrong password"})
            texts.add((answer.status_code, answer.text))
        assert texts == {(401, '{"detail":"name or password is wrong"}')}
        late = await client.post("/api/v1/login", json={"name": "ann", "password": PASSWORD})
        assert late.status_code == 429
        assert int(late.headers["retry-after"]) >= 1


def test_passwords_have_to_be_worth_it():
    for weak in ("short", "a" * 20, "x" * 300):
        with pytest.raises(InvalidMessageError, match="password"):
            passwords.hashed(weak)
    assert passwords.hashed(PASSWORD).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


async def test_the_disk_holds_no_secret(access, services, token, tmp_path):
    secret = token("admin")
    identity, _ = access.store.open_session("ann", kind="demo", tenant="fleet", role=Role.VIEWER)
    access.store.add_user("ann", tenant="fleet", role=Role.VIEWER, password_hash=passwords.hashed(PASSWORD))
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for one in (secret, identity, PASSWORD):
        assert one.encode() not in written
    assert (tmp_path / "access.sqlite").stat().st_mode & 0o077 == 0


def test_tokens_expire_are_revoked_and_their_names_are_theirs(access, real):
    token = access.store.add_token("grafana", tenant="acme", role=Role.VIEWER, valid_s=60)
    assert access.store.of_token(token).sites == {"ann"}
    with pytest.raises(ConflictError):
        access.store.add_token("grafana", tenant="acme", role=Role.VIEWER, valid_s=60)
    with pytest.raises(InvalidMessageError, match="no tenant"):
        access.store.add_token("other", tenant="eve", role=Role.VIEWER, valid_s=60)
    real.set_ns(real.monotonic_ns() + 61 * 10**9)
    assert access.store.of_token(token) is None
    assert access.store.revoke_token("grafana")
    assert not access.store.revoke_token("grafana")


# -- the demo


async def test_the_demo_is_the_admin_for_reading_and_changes_need_its_pages_token(api, access):
    access.demo = True
    transport = httpx.ASGITransport(app=api)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        assert (await client.get("/api/v1/me")).json()["kind"] == "demo"
        assert (await client.post("/api/v1/commands", json=HALT)).status_code == 403
        rebound = await client.get("/api/v1/me", headers={"Host": "evil.example"})
        assert rebound.status_code == 421, "a name that leads here by DNS rebinding reads nothing"


# -- every answer


async def test_every_answer_has_the_headers(api, ask):
    for path, role in (
        ("/api/v1/health", None),
        ("/api/v1/sites", None),
        ("/api/v1/sites", "viewer"),
        ("/nowhere", None),
    ):
        answer = await ask("get", path, role)
        csp = answer.headers["content-security-policy"]
        assert "default-src 'none'" in csp
        assert "unsafe" not in csp
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cache-control"] == "no-store"


async def test_by_tls_cookies_and_headers_say_so(api, access, ask):
    access.secure = True
    assert "max-age=31536000" in (await ask("get", "/api/v1/health")).headers["strict-transport-security"]
    assert access.cookie_text("x", longest_s=5) == (
        "__Host-wattmesh=x; Path=/; HttpOnly; SameSite=Lax; Max-Age=5; Secure"
    )


async def test_too_large_is_413_with_and_without_a_length(ask):
    big = b'{"name": "' + b"x" * 1_000_001 + b'"}'

    async def chunks():
        for at in range(0, len(big), 65_536):
            yield big[at : at + 65_536]

    for content in (big, chunks()):
        answer = await ask(
            "post", "/api/v1/commands", "admin", content=content, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
        assert "larger than 1000000 bytes" in answer.json()["detail"]


async def test_too_fast_is_429_and_waits_help(services, access, token):
    access.requests = Buckets(1.0, 3.0)
    transport = httpx.ASGITransport(app=create_api(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"Authorization": f"Bearer {token('viewer')}"}
        codes = [(await client.get("/api/v1/me", headers=headers)).status_code for _ in range(6)]
        assert codes[:3] == [200] * 3
        assert 429 in codes
        other = {"Authorization": f"Bearer {token('trader')}"}
        assert (await client.get("/api/v1/me", headers=other)).status_code == 200, "one does not slow another"


def test_a_bucket_fills_again():
    bucket = Buckets(2.0, 2.0)
    assert [bucket.take("a", 0.0) for _ in range(2)] == [0.0, 0.0]
    assert bucket.take("a", 0.0) == pytest.approx(0.5)
    assert bucket.take("a", 0.5) == 0.0


@pytest.mark.parametrize(
    "cookie", ["wattmesh=nonsense", "wattmesh=", "a=b; wattmesh", "\x7f=1", "wattmesh=" + "x" * 5000]
)
async def test_a_broken_cookie_is_nobody(ask, cookie):
    assert (await ask("get", "/api/v1/me", headers={"Cookie": cookie})).status_code == 401


# -- OpenID Connect against a stand-in issuer


class Issuer:
    """The provider's side, by httpx's mock transport: metadata, keys, and a token endpoint that checks PKCE."""

    def __init__(self, url="https://id.example.org"):
        self.url, self.key = url, RSAKey.generate_key(2048, {"kid": "k1", "use": "sig"})
        self.claims = {"email": "ann@example.org", "email_verified": True, "groups": ["ops"]}
        self.codes = {}
        self.up = True

    def authorise(self, address):
        """What the provider's page does once somebody has logged in there."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert asked["code_challenge_method"] == "S256"
        assert asked["response_type"] == "code"
        self.codes["c1"] = asked
        return asked["state"], "c1"

    def answer(self, request):
        if not self.up:
            raise httpx.ConnectError("down")
        path = request.url.path
        if path.endswith("openid-configuration"):
            return httpx.Response(200, json={
                "issuer": self.url, "authorization_endpoint": f"{self.url}/authorize", "token_endpoint": f"{self.url}/token",
                "jwks_uri": f"{self.url}/keys",
            })  # fmt: skip
        if path == "/keys":
            return httpx.Response(200, json={"keys": [self.key.as_dict(private=False)]})
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        asked = self.codes.pop(form["code"], None)
        proof = base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        if asked is None or proof != asked["code_challenge"]:
            return httpx.Response(400, json={"error": "invalid_grant"})
        now = int(time.time())
        claims = {"iss": self.url, "aud": "wattmesh", "sub": "1", "iat": now, "exp": now + 300, "nonce": asked["nonce"]}
        token = jwt.encode({"alg": "RS256", "kid": "k1"}, {**claims, **self.claims}, self.key)
        return httpx.Response(200, json={"access_token": "a", "token_type": "Bearer", "id_token": token})


@pytest.fixture
def issuer(monkeypatch):
    made = Issuer()
    transport = httpx.MockTransport(made.answer)
    client = httpx.AsyncClient
    monkeypatch.setattr(oidc_module.httpx, "AsyncClient", lambda **k: client(**k, transport=transport))
    return made


@pytest.fixture
def oidc(issuer):
    model = OidcModel.model_validate(
        {
            "issuer": issuer.url,
            "client_id": "wattmesh",
            "groups": [{"group": "ops", "role": "operator"}, {"group": "acme", "role": "viewer", "tenant": "acme"}],
        }
    )
    return Oidc(model, None, "http://test/api/v1/oidc/callback")


async def test_somebody_of_a_group_comes_in_once(oidc, issuer):
    url, browser = await oidc.begin()
    state, code = issuer.authorise(url)
    who = await oidc.end(state, code, browser)
    assert (who.name, who.role, who.tenant) == ("oidc/ann@example.org", Role.OPERATOR, "fleet")
    with pytest.raises(UnauthorisedError, match="used before"):
        await oidc.end(state, code, browser)


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        ({"groups": ["others"]}, "is in no group that may come in"),
        ({"groups": "ops"}, "is in no group"),
        ({"email": None}, "gives no claim 'email'"),
        ({"email_verified": False}, "not verified"),
        ({"aud": "somebody else"}, "not valid"),
        ({"iss": "https://evil.example"}, "not valid"),
        ({"exp": 5}, "not valid"),
        ({"nonce": "another"}, "not valid"),
    ],
)
async def test_what_the_provider_says_has_to_be_right(oidc, issuer, claims, text):
    url, browser = await oidc.begin()
    state, code = issuer.authorise(url)
    issuer.claims |= claims
    with pytest.raises(UnauthorisedError, match=text):
        await oidc.end(state, code, browser)


async def test_a_token_by_another_key_another_browser_or_state_is_refused(oidc, issuer):
    url, browser = await oidc.begin()
    state, code = issuer.authorise(url)
    with pytest.raises(UnauthorisedError, match="another browser"):
        await oidc.end(state, code, "other")
    with pytest.raises(UnauthorisedError):
        await oidc.end("made-up", code, browser)
    url, browser = await oidc.begin()
    state, code = issuer.authorise(url)
    issuer.key = RSAKey.generate_key(2048, {"kid": "k1"})
    with pytest.raises(UnauthorisedError, match="not valid"):
        await oidc.end(state, code, browser)


async def test_a_provider_that_is_away_is_told_so(oidc, issuer):
    issuer.up = False
    with pytest.raises(UnavailableError, match="no usable metadata"):
        await oidc.begin()


async def test_the_whole_way_through_the_api(services, issuer, oidc, access):
    services.oidc = oidc
    transport = httpx.ASGITransport(app=create_api(services))
    issuer.claims |= {"groups": ["acme"]}

    async with Browser(transport) as client:
        begun = await client.get("/api/v1/oidc/login")
        state, code = issuer.authorise(begun.headers["location"])
        back = await client.get(f"/api/v1/oidc/callback?state={state}&code={code}")
        assert (back.status_code, back.headers["location"]) == (302, "/")
        me = (await client.get("/api/v1/me")).json()
        assert (me["name"], me["role"], me["tenant"]) == ("oidc/ann@example.org", "viewer", "acme")
        refused = await client.get("/api/v1/oidc/callback?state=x&code=y")
        assert refused.headers["location"].startswith("/login?problem=this%20login")
        access.store.change_user("oidc/ann@example.org", disabled=True)
        assert (await client.get("/api/v1/me")).status_code == 401


_Client = httpx.AsyncClient


def Browser(transport):
    return _Client(transport=transport, base_url="http://test")
