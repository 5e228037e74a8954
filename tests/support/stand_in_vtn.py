"""A virtual top node of OpenADR 3.0.1 for tests: what a VEN needs of one, in memory, in the shapes of the specification."""

import secrets
from datetime import UTC, datetime

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


class StandInVtn:
    """Programs and events are set by the test; reports, vens and subscriptions come from the VEN.

    ``broken`` answers instead of the path it names: a status and a body (bytes, or JSON).
    """

    def __init__(self, client_id="wattmesh", client_secret="s3cret"):
        self.client = (client_id, client_secret)
        self.tokens = set()
        self.issued = 0
        self.objects = {"programs": {}, "events": {}, "reports": {}, "vens": {}, "subscriptions": {}}
        self.broken = {}
        self.calls = []
        routes = [Route("/auth/token", self.token, methods=["POST"])]
        for name in self.objects:
            routes.append(Route(f"/{name}", self.collection, methods=["GET", "POST"]))
        self.app = Starlette(routes=routes)

    # -- what a test does

    def program(self, name):
        return self._add("programs", {"programName": name, "objectType": "PROGRAM"})

    def event(self, program_id, start, duration, payloads, **more):
        return self._add(
            "events",
            {
                "objectType": "EVENT",
                "programID": program_id,
                "intervalPeriod": {"start": start, "duration": duration},
                "intervals": [
                    {"id": 0, "payloads": [{"type": name, "values": [value]} for name, value in payloads.items()]}
                ],
                **more,
            },
        )

    def change(self, event_id, **changes):
        self.objects["events"][event_id] |= {**changes, "modificationDateTime": f"2026-01-01T00:00:{self.issued:02d}Z"}
        self.issued += 1

    def delete(self, event_id):
        del self.objects["events"][event_id]

    def _add(self, kind, row):
        name = f"{kind[:-1]}-{len(self.objects[kind])}"
        stamp = datetime.now(UTC).isoformat()
        self.objects[kind][name] = {**row, "id": name, "createdDateTime": stamp, "modificationDateTime": stamp}
        return name

    # -- what the VEN sees

    async def token(self, request: Request) -> Response:
        self.calls.append("token")
        if (broken := self._broken("token")) is not None:
            return broken
        form = dict(part.split("=", 1) for part in (await request.body()).decode().split("&"))
        if (
            form.get("grant_type") != "client_credentials"
            or (form.get("client_id"), form.get("client_secret")) != self.client
        ):
            return JSONResponse({"error": "invalid_client"}, 401)
        token = secrets.token_hex(8)
        self.tokens.add(token)
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": "read_all"})

    async def collection(self, request: Request) -> Response:
        kind = request.url.path.strip("/")
        self.calls.append(f"{request.method} {kind}")
        if (broken := self._broken(kind)) is not None:
            return broken
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return JSONResponse({"status": 401, "title": "Unauthorized"}, 401)
        if request.method == "POST":
            row = await request.json()
            needed = {"reports": {"programID", "eventID", "clientName", "resources"}, "vens": {"venName"},
                      "subscriptions": {"clientName", "programID", "objectOperations"}}.get(kind, {"forbidden"})  # fmt: skip
            if not needed <= set(row):
                return JSONResponse({"status": 400, "title": "Bad Request"}, 400)
            return JSONResponse(self.objects[kind][self._add(kind, row)], 201)
        query = request.query_params
        rows = [
            row
            for row in self.objects[kind].values()
            if query.get("programID") in {None, row.get("programID")}
            and query.get("venName") in {None, row.get("venName")}
        ]
        skip, limit = int(query.get("skip", 0)), int(query.get("limit", 50))
        return JSONResponse(rows[skip : skip + limit])

    def _broken(self, kind):
        if kind not in self.broken:
            return None
        status, body = self.broken[kind]
        return Response(body, status) if isinstance(body, bytes) else JSONResponse(body, status)
