"""The web console: live pages over the :class:`wattmesh_cloud.view.CloudView`, by NiceGUI, without anything from the internet."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import ui

from wattmesh_cloud.console import pages
from wattmesh_cloud.view import CloudView


def attach(app: FastAPI, view: CloudView) -> None:
    """Serve the console on ``app``: ``/``, ``/site/ID``, ``/market``, ``/grid``, ``/agents``, ``/system``."""
    pages.register(view)
    ui.run_with(app, title="WattMesh", show_welcome_message=False, dark=None)
