"""The typed Python client; written by wattmesh_cloud.api.generate, and kept in step with the API by a test.

with Client("https://fleet.example.org", token=token) as fleet:
    for site in fleet.list_sites().rows:
        print(site.id, site.flows.grid_w)
"""

from __future__ import annotations

from types import TracebackType
from typing import Any, Literal

import httpx
from pydantic import TypeAdapter

from wattmesh_cloud.api import grid, lab, reports
from wattmesh_cloud.api import models as m


class ApiError(Exception):
    """The API refuses; ``status`` is HTTP's, the text says what to do."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Client:
    """One connection pool to one fleet.

    Args:
        url: Of the cloud, without a path.
        token: A machine token; none for the demo.
        transport: httpx's, for tests.
    """

    def __init__(self, url: str, token: str | None = None, *, transport: httpx.BaseTransport | None = None) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=30.0, transport=transport)

    def __enter__(self) -> Client:
        """Use it in a ``with``."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, method: str, path: str, query: dict[str, Any], body: Any = None) -> httpx.Response:
        given = {name: value for name, value in query.items() if value is not None}
        answer = self._http.request(method, path, params=given, json=body)
        if answer.status_code >= 400:
            try:
                detail = str(answer.json()["detail"])
            except (ValueError, KeyError, TypeError):
                detail = answer.text[:300]
            raise ApiError(answer.status_code, detail)
        return answer

    def acknowledge_alarm(self, site_id: str, alarm_id: str) -> m.AlarmRow:
        """Say that somebody has seen an alarm and looks after it."""
        answer = self._ask("POST", f"/api/v1/sites/{site_id}/alarms/{alarm_id}/acknowledge", {}, {})
        return TypeAdapter(m.AlarmRow).validate_json(answer.content)

    def add_token(self, body: m.NewToken) -> m.MadeToken:
        """Make a token for a program; it is shown this once."""
        answer = self._ask("POST", "/api/v1/tokens", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.MadeToken).validate_json(answer.content)

    def add_user(self, body: m.NewUser) -> m.Done:
        """Add a local account."""
        answer = self._ask("POST", "/api/v1/users", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.Done).validate_json(answer.content)

    def approve_proposal(self, approval_id: str, body: m.ApprovalDecision) -> m.ApprovalRow:
        """Say yes; the effect follows at the agents' next look, after the guards have looked again."""
        answer = self._ask(
            "POST",
            f"/api/v1/agents/approvals/{approval_id}/approve",
            {},
            body.model_dump(mode="json", exclude_unset=True),
        )
        return TypeAdapter(m.ApprovalRow).validate_json(answer.content)

    def ask_agents(self, body: m.Question) -> m.AgentAnswer:
        """A question in words, answered from records that it cites; what a role may not see is not in the answer."""
        answer = self._ask("POST", "/api/v1/agents/ask", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.AgentAnswer).validate_json(answer.content)

    def ask_command(self, body: m.NewCommand) -> m.CommandRow:
        """Ask for something; where `state` is waiting, a second step is needed. Each kind needs its own right."""
        answer = self._ask("POST", "/api/v1/commands", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.CommandRow).validate_json(answer.content)

    def ask_emergency(self, body: grid.NewEmergency) -> grid.EmergencyAsked:
        """The first step of an emergency or a drill: a token, and what would happen. Nothing does yet."""
        answer = self._ask("POST", "/api/v1/grid/emergencies", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(grid.EmergencyAsked).validate_json(answer.content)

    def cancel_orders(self, body: m.CancelOrders) -> list[m.OrderOutcome]:
        """Take a site's open orders of a slot back."""
        answer = self._ask("POST", "/api/v1/market/orders/cancel", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(list[m.OrderOutcome]).validate_json(answer.content)

    def change_user(self, name: str, body: m.UserChange) -> m.Done:
        """Change an account; ends its sessions."""
        answer = self._ask("PATCH", f"/api/v1/users/{name}", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.Done).validate_json(answer.content)

    def clear_lab(self) -> lab.LabState:
        """End every fault."""
        answer = self._ask("POST", "/api/v1/lab/clear", {}, {})
        return TypeAdapter(lab.LabState).validate_json(answer.content)

    def confirm_command(self, command_id: str, body: m.Confirmation) -> m.CommandRow:
        """The second step: type what `confirm` says. Where it needs approval, somebody else does."""
        answer = self._ask(
            "POST", f"/api/v1/commands/{command_id}/confirm", {}, body.model_dump(mode="json", exclude_unset=True)
        )
        return TypeAdapter(m.CommandRow).validate_json(answer.content)

    def confirm_emergency(self, body: grid.EmergencyConfirmation) -> grid.EmergencyRow:
        """The second step: it takes effect."""
        answer = self._ask(
            "POST", "/api/v1/grid/emergencies/confirm", {}, body.model_dump(mode="json", exclude_unset=True)
        )
        return TypeAdapter(grid.EmergencyRow).validate_json(answer.content)

    def get_analytics(self, *, area: str | None = None) -> m.MarketAnalytics:
        """Own results, concentration, welfare against the best possible."""
        answer = self._ask("GET", "/api/v1/market/analytics", {"area": area})
        return TypeAdapter(m.MarketAnalytics).validate_json(answer.content)

    def get_command(self, command_id: str) -> m.CommandRow:
        """One command."""
        answer = self._ask("GET", f"/api/v1/commands/{command_id}", {})
        return TypeAdapter(m.CommandRow).validate_json(answer.content)

    def get_conversation(self, conversation_id: str) -> list[m.TurnRow]:
        """The turns of a conversation in their order: what was asked, answered, refused, and from what."""
        answer = self._ask("GET", f"/api/v1/agents/conversations/{conversation_id}", {})
        return TypeAdapter(list[m.TurnRow]).validate_json(answer.content)

    def get_depth(self, *, slot_ns: int, levels: int = 10, area: str | None = None) -> m.Product:
        """One product."""
        answer = self._ask("GET", "/api/v1/market/depth", {"slot_ns": slot_ns, "levels": levels, "area": area})
        return TypeAdapter(m.Product).validate_json(answer.content)

    def get_emergencies(self) -> grid.EmergencyView:
        """What stands, what waits for its second step, what was, and the stages there are."""
        answer = self._ask("GET", "/api/v1/grid/emergencies", {})
        return TypeAdapter(grid.EmergencyView).validate_json(answer.content)

    def get_event_trace(self, site_id: str, event_id: str) -> m.EventTrace:
        """What the gateway kept around an event, thinned for a plot; asked of the gateway now."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/frequency/{event_id}/trace", {})
        return TypeAdapter(m.EventTrace).validate_json(answer.content)

    def get_frequency_samples(self, site_id: str) -> m.FrequencySamplesAnswer:
        """The last samples that came while somebody looked; `/live?topic=frequency` begins them."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/frequency/live", {})
        return TypeAdapter(m.FrequencySamplesAnswer).validate_json(answer.content)

    def get_grid(self) -> m.GridAnswer:
        """Status and frequency as the gateways see them."""
        answer = self._ask("GET", "/api/v1/grid", {})
        return TypeAdapter(m.GridAnswer).validate_json(answer.content)

    def get_health(self) -> m.Health:
        """Whether the cloud works, and its time. Asks nobody who they are."""
        answer = self._ask("GET", "/api/v1/health", {})
        return TypeAdapter(m.Health).validate_json(answer.content)

    def get_index(self, *, start_ns: int, end_ns: int, area: str | None = None) -> m.MarketIndex:
        """Mean price of all trades for deliveries in a window, weighted with energy; none without trades."""
        answer = self._ask("GET", "/api/v1/market/index", {"start_ns": start_ns, "end_ns": end_ns, "area": area})
        return TypeAdapter(m.MarketIndex).validate_json(answer.content)

    def get_job(self, job_id: str) -> m.JobRow:
        """One job."""
        answer = self._ask("GET", f"/api/v1/jobs/{job_id}", {})
        return TypeAdapter(m.JobRow).validate_json(answer.content)

    def get_job_file(self, job_id: str, name: str) -> bytes:
        """A result of a job."""
        answer = self._ask("GET", f"/api/v1/jobs/{job_id}/files/{name}", {})
        return answer.content

    def get_lab(self) -> lab.LabState:
        """Devices with their faults, scenarios, and the simulated grid."""
        answer = self._ask("GET", "/api/v1/lab", {})
        return TypeAdapter(lab.LabState).validate_json(answer.content)

    def get_login_methods(self) -> m.LoginMethods:
        """How somebody may log in here."""
        answer = self._ask("GET", "/api/v1/login/methods", {})
        return TypeAdapter(m.LoginMethods).validate_json(answer.content)

    def get_market(self, *, area: str | None = None) -> m.MarketSummary:
        """The area's figures and rules."""
        answer = self._ask("GET", "/api/v1/market", {"area": area})
        return TypeAdapter(m.MarketSummary).validate_json(answer.content)

    def get_me(self) -> m.Me:
        """Who I am, and the token that changes need."""
        answer = self._ask("GET", "/api/v1/me", {})
        return TypeAdapter(m.Me).validate_json(answer.content)

    def get_metrics(self) -> str:
        """Figures for Prometheus; give it a token of a viewer."""
        answer = self._ask("GET", "/metrics", {})
        return answer.text

    def get_plan(self, site_id: str, *, slots: int = 96) -> m.Plan:
        """Its coming slots: commitments, prices, expected load and production; and the plan that its gateway has taken."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/plan", {"slots": slots})
        return TypeAdapter(m.Plan).validate_json(answer.content)

    def get_report(self, *, period: m.ReportPeriod, start: str, site_id: str | None = None) -> reports.ReportFigures:
        """The figures of a day, week or month, of a site or of all own sites."""
        answer = self._ask("GET", "/api/v1/reports/figures", {"period": period, "start": start, "site_id": site_id})
        return TypeAdapter(reports.ReportFigures).validate_json(answer.content)

    def get_report_file(self, name: str) -> bytes:
        """One of them."""
        answer = self._ask("GET", f"/api/v1/reports/{name}", {})
        return answer.content

    def get_site(self, site_id: str) -> m.SiteDetail:
        """One site with its assets and their newest values."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}", {})
        return TypeAdapter(m.SiteDetail).validate_json(answer.content)

    def get_switch(self) -> m.SwitchAnswer:
        """Whether models may have an effect, and who said so."""
        answer = self._ask("GET", "/api/v1/agents/switch", {})
        return TypeAdapter(m.SwitchAnswer).validate_json(answer.content)

    def get_system(self) -> m.System:
        """Ingest, backlog, versions, addresses."""
        answer = self._ask("GET", "/api/v1/system", {})
        return TypeAdapter(m.System).validate_json(answer.content)

    def list_agent_decisions(self, *, limit: int = 100, after: str | None = None) -> m.Page[m.AgentDecisionRow]:
        """What the agents chose for the own sites, newest first."""
        answer = self._ask("GET", "/api/v1/agents/decisions", {"limit": limit, "after": after})
        return TypeAdapter(m.Page[m.AgentDecisionRow]).validate_json(answer.content)

    def list_agent_records(
        self, *, limit: int = 50, agent: str | None = None, about: str | None = None
    ) -> list[m.AgentRecord]:
        """Whole decisions, newest first: what an agent saw, proposed, was refused, did, and what came of it."""
        answer = self._ask("GET", "/api/v1/agents/records", {"limit": limit, "agent": agent, "about": about})
        return TypeAdapter(list[m.AgentRecord]).validate_json(answer.content)

    def list_agents(self) -> list[m.AgentRow]:
        """All agents with their figures."""
        answer = self._ask("GET", "/api/v1/agents", {})
        return TypeAdapter(list[m.AgentRow]).validate_json(answer.content)

    def list_alarms(self) -> list[m.AlarmRow]:
        """Alarms that stand at the own sites, the worst first."""
        answer = self._ask("GET", "/api/v1/alarms", {})
        return TypeAdapter(list[m.AlarmRow]).validate_json(answer.content)

    def list_approvals(self, *, waiting: bool = True, limit: int = 100) -> list[m.ApprovalRow]:
        """Proposals that wait for a person, or all of them; newest first."""
        answer = self._ask("GET", "/api/v1/agents/approvals", {"waiting": waiting, "limit": limit})
        return TypeAdapter(list[m.ApprovalRow]).validate_json(answer.content)

    def list_areas(self) -> list[str]:
        """Market areas; the other routes take one as `area`, and the first of these where it is left out."""
        answer = self._ask("GET", "/api/v1/market/areas", {})
        return TypeAdapter(list[str]).validate_json(answer.content)

    def list_assets(self, site_id: str) -> list[m.Asset]:
        """Its devices with their newest values."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/assets", {})
        return TypeAdapter(list[m.Asset]).validate_json(answer.content)

    def list_audit(self, *, limit: int = 100, before: int | None = None) -> list[m.AuditRow]:
        """Who did what, newest first; read on with `before` set to the last row's sequence."""
        answer = self._ask("GET", "/api/v1/audit", {"limit": limit, "before": before})
        return TypeAdapter(list[m.AuditRow]).validate_json(answer.content)

    def list_candles(
        self,
        *,
        limit: int = 96,
        after: str | None = None,
        area: str | None = None,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.CandleRow] | bytes:
        """Candles of 5 minutes of closed products, newest first."""
        answer = self._ask(
            "GET", "/api/v1/market/candles", {"limit": limit, "after": after, "area": area, "format": as_file}
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.CandleRow]).validate_json(answer.content)

    def list_command_kinds(self) -> list[m.CommandKind]:
        """What I may ask for, with its arguments."""
        answer = self._ask("GET", "/api/v1/commands/kinds", {})
        return TypeAdapter(list[m.CommandKind]).validate_json(answer.content)

    def list_commands(self, *, limit: int = 50, before: str | None = None) -> m.Page[m.CommandRow]:
        """What was asked for, newest first; `next` goes into `before`."""
        answer = self._ask("GET", "/api/v1/commands", {"limit": limit, "before": before})
        return TypeAdapter(m.Page[m.CommandRow]).validate_json(answer.content)

    def list_conversations(self, *, limit: int = 50) -> list[m.ConversationRow]:
        """Agents that asked each other, the newest first; of other tenants' sites nothing is told."""
        answer = self._ask("GET", "/api/v1/agents/conversations", {"limit": limit})
        return TypeAdapter(list[m.ConversationRow]).validate_json(answer.content)

    def list_decisions(
        self,
        site_id: str,
        *,
        limit: int = 100,
        after: str | None = None,
        start_ns: int = 0,
        end_ns: int = 4611686018427387904,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.DecisionRow] | bytes:
        """What the arbiter decided and why, newest first."""
        answer = self._ask(
            "GET",
            f"/api/v1/sites/{site_id}/decisions",
            {"limit": limit, "after": after, "start_ns": start_ns, "end_ns": end_ns, "format": as_file},
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.DecisionRow]).validate_json(answer.content)

    def list_demand_response(self) -> list[m.ResponseRow]:
        """Events: announced, under way, settled; the newest first."""
        answer = self._ask("GET", "/api/v1/grid/demand-response", {})
        return TypeAdapter(list[m.ResponseRow]).validate_json(answer.content)

    def list_devices(self, site_id: str) -> list[m.DeviceRow]:
        """Its devices as their drivers see them; asked of the gateway now."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/devices", {})
        return TypeAdapter(list[m.DeviceRow]).validate_json(answer.content)

    def list_flows(self, site_id: str) -> list[m.FlowRow]:
        """Its power flows of the last hour or so, from memory, oldest first."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/flows", {})
        return TypeAdapter(list[m.FlowRow]).validate_json(answer.content)

    def list_forecasts(self, site_id: str) -> list[m.ForecastAnswer]:
        """The newest forecasts, with their quantiles."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/forecasts", {})
        return TypeAdapter(list[m.ForecastAnswer]).validate_json(answer.content)

    def list_frequency_events(self, *, limit: int = 50) -> list[m.FrequencyEventRow]:
        """Events of all own sites, newest first."""
        answer = self._ask("GET", "/api/v1/frequency/events", {"limit": limit})
        return TypeAdapter(list[m.FrequencyEventRow]).validate_json(answer.content)

    def list_gateways(self) -> list[m.GatewayRow]:
        """The own sites' gateways."""
        answer = self._ask("GET", "/api/v1/gateways", {})
        return TypeAdapter(list[m.GatewayRow]).validate_json(answer.content)

    def list_grid_areas(self) -> list[grid.AreaRow]:
        """Load and production of every area now."""
        answer = self._ask("GET", "/api/v1/grid/areas", {})
        return TypeAdapter(list[grid.AreaRow]).validate_json(answer.content)

    def list_grid_status(self, *, limit: int = 50, after: str | None = None) -> m.Page[m.GridStatusRow]:
        """Changes of the grid's status, newest first."""
        answer = self._ask("GET", "/api/v1/grid/status", {"limit": limit, "after": after})
        return TypeAdapter(m.Page[m.GridStatusRow]).validate_json(answer.content)

    def list_intervals(
        self,
        site_id: str,
        *,
        limit: int = 96,
        after: str | None = None,
        start_ns: int = 0,
        end_ns: int = 4611686018427387904,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.IntervalRow] | bytes:
        """Metered energy a slot, newest first."""
        answer = self._ask(
            "GET",
            f"/api/v1/sites/{site_id}/intervals",
            {"limit": limit, "after": after, "start_ns": start_ns, "end_ns": end_ns, "format": as_file},
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.IntervalRow]).validate_json(answer.content)

    def list_jobs(self) -> list[m.JobRow]:
        """Longer work, newest first."""
        answer = self._ask("GET", "/api/v1/jobs", {})
        return TypeAdapter(list[m.JobRow]).validate_json(answer.content)

    def list_orders(self, *, limit: int = 200, area: str | None = None) -> list[m.OrderRow]:
        """Own orders of all products that are open, the nearest delivery first."""
        answer = self._ask("GET", "/api/v1/market/orders", {"limit": limit, "area": area})
        return TypeAdapter(list[m.OrderRow]).validate_json(answer.content)

    def list_positions(self, *, area: str | None = None) -> list[m.PositionRow]:
        """Accounts and exposure of the own participants."""
        answer = self._ask("GET", "/api/v1/market/positions", {"area": area})
        return TypeAdapter(list[m.PositionRow]).validate_json(answer.content)

    def list_products(self, *, area: str | None = None) -> list[m.Product]:
        """Depth, prices and volume of all open products; a call's book is sealed."""
        answer = self._ask("GET", "/api/v1/market/products", {"area": area})
        return TypeAdapter(list[m.Product]).validate_json(answer.content)

    def list_readings(
        self,
        site_id: str,
        *,
        column: list[str],
        start_ns: int,
        end_ns: int,
        step_s: int | None = None,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> list[m.Reading] | bytes:
        """Stored samples of some points, oldest first, at most 20,000 of each; with a step, means of good values."""
        answer = self._ask(
            "GET",
            f"/api/v1/sites/{site_id}/readings",
            {"column": column, "start_ns": start_ns, "end_ns": end_ns, "step_s": step_s, "format": as_file},
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(list[m.Reading]).validate_json(answer.content)

    def list_registry(
        self, *, online: bool | None = None, takes: str | None = None, limit: int = 1000
    ) -> list[m.CardRow]:
        """Every agent that has shown a card: version, what it takes, whether it is there, when it was last heard."""
        answer = self._ask("GET", "/api/v1/agents/registry", {"online": online, "takes": takes, "limit": limit})
        return TypeAdapter(list[m.CardRow]).validate_json(answer.content)

    def list_reports(self) -> list[reports.KeptReport]:
        """Reports that were written by themselves, newest first."""
        answer = self._ask("GET", "/api/v1/reports", {})
        return TypeAdapter(list[reports.KeptReport]).validate_json(answer.content)

    def list_settlements(
        self,
        site_id: str,
        *,
        limit: int = 96,
        after: str | None = None,
        start_ns: int = 0,
        end_ns: int = 4611686018427387904,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.SettlementRow] | bytes:
        """Its statement: money of each settled slot, newest first."""
        answer = self._ask(
            "GET",
            f"/api/v1/sites/{site_id}/settlements",
            {"limit": limit, "after": after, "start_ns": start_ns, "end_ns": end_ns, "format": as_file},
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.SettlementRow]).validate_json(answer.content)

    def list_site_alarms(self, site_id: str, *, limit: int = 100, after: str | None = None) -> m.Page[m.AlarmRow]:
        """Its alarms, standing and past, newest first."""
        answer = self._ask("GET", f"/api/v1/sites/{site_id}/alarms", {"limit": limit, "after": after})
        return TypeAdapter(m.Page[m.AlarmRow]).validate_json(answer.content)

    def list_site_frequency_events(
        self,
        site_id: str,
        *,
        limit: int = 50,
        after: str | None = None,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.FrequencyEventRow] | bytes:
        """What its reflex saw and did, newest first."""
        answer = self._ask(
            "GET", f"/api/v1/sites/{site_id}/frequency", {"limit": limit, "after": after, "format": as_file}
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.FrequencyEventRow]).validate_json(answer.content)

    def list_sites(self, *, limit: int = 500, after: str | None = None) -> m.Page[m.SiteRow]:
        """Sites by name with what they do now; `state` says which want somebody's eyes."""
        answer = self._ask("GET", "/api/v1/sites", {"limit": limit, "after": after})
        return TypeAdapter(m.Page[m.SiteRow]).validate_json(answer.content)

    def list_slots(
        self,
        *,
        limit: int = 96,
        after: str | None = None,
        area: str | None = None,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.SlotRow] | bytes:
        """Cleared slots, newest first."""
        answer = self._ask(
            "GET", "/api/v1/market/slots", {"limit": limit, "after": after, "area": area, "format": as_file}
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.SlotRow]).validate_json(answer.content)

    def list_tokens(self) -> list[m.TokenRow]:
        """Machine tokens, without the tokens."""
        answer = self._ask("GET", "/api/v1/tokens", {})
        return TypeAdapter(list[m.TokenRow]).validate_json(answer.content)

    def list_trades(
        self,
        *,
        limit: int = 100,
        after: str | None = None,
        start_ns: int = 0,
        end_ns: int = 4611686018427387904,
        area: str | None = None,
        as_file: Literal["csv", "parquet"] | None = None,
    ) -> m.Page[m.TradeRow] | bytes:
        """Trades, newest delivery first; names of other tenants are left out."""
        answer = self._ask(
            "GET",
            "/api/v1/market/trades",
            {"limit": limit, "after": after, "start_ns": start_ns, "end_ns": end_ns, "area": area, "format": as_file},
        )
        if as_file is not None:
            return answer.content
        return TypeAdapter(m.Page[m.TradeRow]).validate_json(answer.content)

    def list_users(self) -> list[m.UserRow]:
        """All accounts."""
        answer = self._ask("GET", "/api/v1/users", {})
        return TypeAdapter(list[m.UserRow]).validate_json(answer.content)

    def list_warnings(self) -> list[grid.WarningRow]:
        """What the forecasts put outside its limits in the coming day, the soonest first."""
        answer = self._ask("GET", "/api/v1/grid/warnings", {})
        return TypeAdapter(list[grid.WarningRow]).validate_json(answer.content)

    def logout(self) -> m.Done:
        """End this session."""
        answer = self._ask("POST", "/api/v1/logout", {}, {})
        return TypeAdapter(m.Done).validate_json(answer.content)

    def make_report(self, body: m.NewReport) -> m.JobRow:
        """Write a report as PDF, CSV and JSON; a job, whose files are ready when it is done."""
        answer = self._ask("POST", "/api/v1/reports", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.JobRow).validate_json(answer.content)

    def place_orders(self, body: m.PlaceOrders) -> list[m.OrderOutcome]:
        """Place orders for a site; one word an order, by the market's own limits. Again with the same ids: where they stand."""
        answer = self._ask("POST", "/api/v1/market/orders", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(list[m.OrderOutcome]).validate_json(answer.content)

    def propose(self, body: m.NewProposal) -> m.AgentRecord:
        """Ask an agent for something: its guards have the word, and where they say so, a person."""
        answer = self._ask("POST", "/api/v1/agents/proposals", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(m.AgentRecord).validate_json(answer.content)

    def refuse_proposal(self, approval_id: str, body: m.ApprovalDecision) -> m.ApprovalRow:
        """Say no."""
        answer = self._ask(
            "POST",
            f"/api/v1/agents/approvals/{approval_id}/refuse",
            {},
            body.model_dump(mode="json", exclude_unset=True),
        )
        return TypeAdapter(m.ApprovalRow).validate_json(answer.content)

    def reject_command(self, command_id: str) -> m.CommandRow:
        """Let a waiting command be."""
        answer = self._ask("POST", f"/api/v1/commands/{command_id}/reject", {}, {})
        return TypeAdapter(m.CommandRow).validate_json(answer.content)

    def release_emergency(self, body: grid.EmergencyRelease) -> m.Done:
        """End what stands in an area."""
        answer = self._ask(
            "POST", "/api/v1/grid/emergencies/release", {}, body.model_dump(mode="json", exclude_unset=True)
        )
        return TypeAdapter(m.Done).validate_json(answer.content)

    def revoke_token(self, name: str) -> m.Done:
        """Take a token back."""
        answer = self._ask("DELETE", f"/api/v1/tokens/{name}", {}, {})
        return TypeAdapter(m.Done).validate_json(answer.content)

    def start_disturbance(self, body: lab.LabDisturbance) -> lab.LabState:
        """Disturb the simulated grid."""
        answer = self._ask("POST", "/api/v1/lab/disturbances", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(lab.LabState).validate_json(answer.content)

    def start_fault(self, body: lab.LabFault) -> lab.LabState:
        """Let a simulated device go wrong; it ends by itself."""
        answer = self._ask("POST", "/api/v1/lab/faults", {}, body.model_dump(mode="json", exclude_unset=True))
        return TypeAdapter(lab.LabState).validate_json(answer.content)

    def verify_audit(self) -> m.AuditVerdict:
        """Whether the log's chain is whole."""
        answer = self._ask("GET", "/api/v1/audit/verdict", {})
        return TypeAdapter(m.AuditVerdict).validate_json(answer.content)
