"""Changes from afar: configuration by message or by the device's shadow, configuration and software by jobs.

Shadows and jobs have the shapes of AWS IoT's reserved topics (named shadow ``config``: desired, reported, delta; Jobs: notify-next,
``$next/get``, update with QUEUED, IN_PROGRESS, SUCCEEDED, FAILED, REJECTED). On IoT Core the service itself keeps them, under
``$aws/things``; on a plain broker whoever manages the fleet does, under a prefix of one's own.

Neither is believed for its channel's sake: what is asked for is signed by the cloud's key like every other command, over operation,
site, version and SHA-256 of the content. Then it goes the way of every change: checked as a whole, newer than what is known, within
the owner's limits, tried, watched, and kept or taken back; the word on it is sent back with its reason.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wattmesh_a2a.codec import canonical
from wattmesh_a2a.envelope import CLOUD_UNIT, Address, Envelope
from wattmesh_a2a.errors import ConfigurationError, UnauthorisedError, UnavailableError, WattmeshError
from wattmesh_a2a.messages import Acknowledged, ConfigurationChange, Message
from wattmesh_a2a.signing import Signer
from wattmesh_a2a.transports.base import Inbound, Transport
from wattmesh_a2a.transports.mqtt import is_loopback

from wattmesh_edge.releases import Releases
from wattmesh_edge.versions import Health, Trial, Versions, write_whole

log = logging.getLogger(__name__)

CONFIGURATION_AGENT = "configuration"
"""Of the cloud: in whose name changes are signed."""
SHADOW = "config"
CONFIGURE, UPGRADE = "configure", "upgrade"
_ANSWER_S = 0.5
_DOWNLOAD_S = 30.0
_ARTIFACT_BYTES = 64_000_000
_DOCUMENT_BYTES = 32_768
"""Of a job document on AWS; a shadow is smaller still."""


def signed_content(operation: str, site: str, version: int | str, sha256: str) -> bytes:
    """What the cloud signs of a change: nobody can put another content, site or version in its place."""
    return canonical({"operation": operation, "site": site, "version": version, "sha256": sha256})


class Changes:
    """Takes changes, and tells what became of them.

    Args:
        site_id: The site.
        org: Its organisation.
        gateway: Our address.
        versions: Of the configuration; none: it cannot be changed from afar.
        releases: Of the software; none: it cannot be changed from afar.
        trial: Watches what is on trial.
        keys: Verify signatures.
        transport: For shadows and jobs.
        things: Topics of the thing, like ``$aws/things/NAME``; none: neither shadow nor jobs.
        folder: Where the job under way is kept over a restart.
        spawn: Runs work in the background.
    """

    def __init__(
        self,
        site_id: str,
        org: str,
        gateway: Address,
        *,
        versions: Versions | None,
        releases: Releases | None,
        trial: Trial | None,
        keys: Signer,
        transport: Transport,
        things: str | None,
        folder: Path,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._site_id = site_id
        self._gateway = gateway
        self._signer = Address(org, CLOUD_UNIT, CONFIGURATION_AGENT)
        self._versions = versions
        self._releases = releases
        self._trial = trial
        self._keys = keys
        self._transport = transport
        self._things = things
        self._job_file = folder / "job.json"
        self._spawn = spawn
        self._busy = False
        self._shadow: dict[str, object] = {}
        """What is told of the last change beside what runs."""
        self.changed = asyncio.Event()
        """Set when another version of configuration or software is to be run."""

    async def start(self) -> None:
        """Listen for shadow and jobs; whatever waited for us comes with the connection."""
        if self._things is None:
            return
        shadow = f"{self._things}/shadow/name/{SHADOW}"
        await self._transport.subscribe(f"{shadow}/update/delta", self._on_delta)
        await self._transport.subscribe(f"{shadow}/get/accepted", self._on_delta)
        await self._transport.subscribe(f"{self._things}/jobs/notify-next", self._on_job)
        await self._transport.subscribe(f"{self._things}/jobs/$next/get/accepted", self._on_job)
        self._transport.on_connected(lambda: self._spawn(self._say_hello()))

    async def _say_hello(self) -> None:
        await self._report()
        await self._settle_job()
        await self._publish(f"shadow/name/{SHADOW}/get", {})
        await self._publish("jobs/$next/get", {})

    # -- by message

    async def on_message(self, envelope: Envelope) -> Message:
        """A :class:`ConfigurationChange`, whose signature the messenger has looked at."""
        change = envelope.data
        assert isinstance(change, ConfigurationChange)
        if envelope.source.unit != CLOUD_UNIT or change.site_id != self._site_id:
            raise UnauthorisedError(
                f"{envelope.source} may not configure {self._site_id} with a file of {change.site_id}"
            )
        self._propose(change.version, change.text)
        self._soon()
        return Acknowledged(detail=f"version {change.version} is tried")

    def _propose(self, version: object, text: object) -> None:
        if self._versions is None:
            raise ConfigurationError("this gateway keeps no versions")
        if not isinstance(version, int) or isinstance(version, bool) or not isinstance(text, str):
            raise ConfigurationError("a configuration is a version, a whole number, and a text")
        if self._releases is not None and self._releases.trial:
            raise ConfigurationError(f"release {self._releases.trial} is on trial; one change at a time")
        self._versions.propose(version, text)

    def _soon(self) -> None:
        asyncio.get_running_loop().call_later(_ANSWER_S, self.changed.set)  # the answer goes out first

    # -- by shadow

    def _on_delta(self, inbound: Inbound) -> None:
        state = _object(inbound.payload).get("state")
        delta = state.get("delta", state) if isinstance(state, dict) else None
        wanted = delta.get("configuration") if isinstance(delta, dict) else None
        if isinstance(wanted, dict):
            self._spawn(self._configure_by_shadow(wanted))

    async def _configure_by_shadow(self, wanted: Mapping[str, object]) -> None:
        """Try what is desired, and clear the desire: what is running stands under reported."""
        version, text = wanted.get("version"), wanted.get("text")
        if self._versions is not None and version in {self._versions.current, self._versions.trial} - {0}:
            await self._report(clear=True)
            return
        try:
            content = text.encode() if isinstance(text, str) else b""
            self._check_signature(CONFIGURE, version, hashlib.sha256(content).hexdigest(), wanted.get("signature"))
            self._propose(version, text)
        except WattmeshError as error:
            log.warning("version %s of the configuration, by shadow, is refused: %s", version, error)
            self._shadow = {"refused": version, "reason": str(error)}
            await self._report(clear=True)
            return
        self._shadow = {}
        await self._report(clear=True)
        self._soon()

    async def _report(self, *, clear: bool = False) -> None:
        versions, releases = self._versions, self._releases
        told = versions.history()[-1] if versions is not None and versions.history() else None
        configuration: dict[str, object] = {
            "version": 0 if versions is None else versions.current,
            "trial": (versions.trial or None) if versions is not None else None,
            "last": None if told is None else {"version": told[0], "outcome": told[1][:500]},
            "refused": self._shadow.get("refused"),
            "reason": str(self._shadow["reason"])[:1000] if "reason" in self._shadow else None,
        }
        reported = {"configuration": configuration, "software": None if releases is None else releases.version}
        state: dict[str, object] = {"reported": reported}
        if clear:
            state["desired"] = {"configuration": None}
        await self._publish(f"shadow/name/{SHADOW}/update", {"state": state})

    # -- by job

    def _on_job(self, inbound: Inbound) -> None:
        execution = _object(inbound.payload).get("execution")
        if isinstance(execution, dict) and isinstance(execution.get("jobId"), str):
            self._spawn(self._execute(execution))

    async def _execute(self, execution: Mapping[str, Any]) -> None:
        job, status = str(execution["jobId"]), execution.get("status")
        document = execution.get("jobDocument")
        if isinstance(document, dict) and "operation" not in document:
            return  # for another client of the same thing, like the AWS IoT Device Client
        if self._busy or self._running_job() is not None:
            return  # one at a time; the service tells of the next when this one is over
        if status == "IN_PROGRESS":
            await self._tell_job(job, "FAILED", "the gateway ended while it was under way")
            return
        if status != "QUEUED":
            return
        self._busy = True
        try:
            await self._tell_job(job, "IN_PROGRESS", "being checked")
            await self._carry_out(job, document)
        except WattmeshError as error:
            log.warning("job %s is refused: %s", job, error)
            await self._tell_job(job, "REJECTED" if isinstance(error, UnauthorisedError) else "FAILED", str(error))
        finally:
            self._busy = False

    async def _carry_out(self, job: str, document: object) -> None:
        if not isinstance(document, dict) or len(json.dumps(document)) > _DOCUMENT_BYTES:
            raise ConfigurationError("the job's document is no object, or too large")
        operation, version = document.get("operation"), document.get("version")
        artifact = document.get("artifact")
        if operation not in {CONFIGURE, UPGRADE} or not isinstance(artifact, dict):
            raise ConfigurationError(
                f"a document has operation {CONFIGURE} or {UPGRADE}, version, artifact and signature"
            )
        url, sha256 = artifact.get("url"), artifact.get("sha256")
        if not isinstance(url, str) or not isinstance(sha256, str):
            raise ConfigurationError("an artifact has url and sha256")
        self._check_signature(operation, version, sha256, document.get("signature"))
        path = self._job_file.with_name("artifact")
        try:
            await asyncio.to_thread(download, url, path, sha256)
            if operation == CONFIGURE:
                self._propose(version, path.read_text(encoding="utf-8"))
            elif self._releases is None:
                raise ConfigurationError("this gateway keeps no releases")
            elif self._versions is not None and self._versions.trial:
                raise ConfigurationError(f"version {self._versions.trial} is on trial; one change at a time")
            else:
                await asyncio.to_thread(self._releases.stage, str(version), path)
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"the artifact is no text: {error}") from error
        finally:
            path.unlink(missing_ok=True)
        write_whole(self._job_file, json.dumps({"job": job, "operation": operation, "version": version}).encode())
        await self._tell_job(job, "IN_PROGRESS", f"{operation} {version} is tried")
        self._soon()

    def _check_signature(self, operation: str, version: object, sha256: str, signature: object) -> None:
        if not isinstance(version, int | str) or isinstance(version, bool):
            raise ConfigurationError("version is missing")
        content = signed_content(operation, self._site_id, version, sha256)
        if not isinstance(signature, str) or not self._keys.verify(self._signer, self._gateway, content, signature):
            raise UnauthorisedError("the change is not signed by the cloud for this site, version and content")

    def _running_job(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self._job_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and {"job", "operation", "version"} <= found.keys() else None

    async def _settle_job(self) -> None:
        """Tell the end of a job whose trial is over, also after a restart."""
        job = self._running_job()
        if job is None:
            return
        holder: Versions | Releases | None = self._versions if job["operation"] == CONFIGURE else self._releases
        if holder is None or (holder.trial and str(holder.trial) == str(job["version"])):
            return
        outcome = next(
            (text for version, text in reversed(holder.history()) if str(version) == str(job["version"])), ""
        )
        good = outcome == "good"
        if await self._tell_job(
            str(job["job"]), "SUCCEEDED" if good else "FAILED", outcome or "nothing is known of it"
        ):
            self._job_file.unlink(missing_ok=True)

    async def _tell_job(self, job: str, status: str, reason: str) -> bool:
        return await self._publish(
            f"jobs/{job}/update",
            {"status": status, "statusDetails": {"reason": reason[:1000], "version": self._software()}},
        )

    def _software(self) -> str:
        return "" if self._releases is None else self._releases.version

    async def _publish(self, topic: str, fields: Mapping[str, object]) -> bool:
        if self._things is None:
            return False
        try:
            await self._transport.publish(f"{self._things}/{topic}", json.dumps(fields).encode())
        except UnavailableError:
            return False  # it is told again with the next connection
        return True

    # -- the trial

    def judge(self, health: Callable[[], Health]) -> None:
        """After each cycle of what is on trial: keep it, go back, or watch on; raises OSError where the disk fails."""
        if self._trial is None or (verdict := self._trial.judge(health())) is None:
            return
        self._trial = None
        holders = [one for one in (self._versions, self._releases) if one is not None and one.trial]
        if verdict != "good":
            self.changed.set()
        for holder in holders:
            if verdict == "good":
                log.info("%s on trial is good", holder.trial)
                holder.accept()
            else:
                holder.roll_back(verdict)
        self._spawn(self._told_after_trial())

    async def _told_after_trial(self) -> None:
        await self._report()
        await self._settle_job()


def download(url: str, path: Path, sha256: str) -> None:
    """An artifact by https, or by http from this machine, bounded; nothing is left where its digest is another.

    Raises:
        ConfigurationError: The address is not allowed, it is too large, or its digest is another.
        UnavailableError: It could not be had now.
    """
    _check_url(url)
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_DOWNLOAD_S) as answer, path.open("wb") as file:  # noqa: S310 - checked
            _check_url(answer.geturl())
            while block := answer.read(65_536):
                size += len(block)
                if size > _ARTIFACT_BYTES:
                    raise ConfigurationError(f"the artifact has more than {_ARTIFACT_BYTES} bytes")
                digest.update(block)
                file.write(block)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise UnavailableError(f"{url}: {error}") from error
    if digest.hexdigest() != sha256.lower():
        path.unlink(missing_ok=True)
        raise ConfigurationError(f"the artifact's SHA-256 is {digest.hexdigest()}, and {sha256} was announced")


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ConfigurationError(f"{url!r}: artifacts come by https")


def _object(payload: bytes) -> dict[str, Any]:
    """A JSON object; an empty one for what is none."""
    if len(payload) > 4 * _DOCUMENT_BYTES:
        return {}
    try:
        found = json.loads(payload)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
