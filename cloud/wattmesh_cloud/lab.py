"""The hardware lab as the cloud reaches it: a loopback socket of the simulators, with a shared secret."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from pydantic import Field
from wattmesh_a2a.config_file import StrictModel
from wattmesh_a2a.errors import InvalidMessageError, UnavailableError

_ANSWER_S = 3.0


class LabModel(StrictModel):
    """Where the simulators of this fleet listen; only where the hardware is simulated."""

    port: int = Field(ge=1, le=65535)
    secret: Path


class LabClient:
    """Asks the simulators; a connection a question.

    Args:
        port: Of the loopback interface.
        secret: A file.
    """

    def __init__(self, port: int, secret: Path) -> None:
        self._port, self._secret = port, secret

    async def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Send a question, give the answer.

        Raises:
            InvalidMessageError: The simulators refuse it, and say why.
            UnavailableError: They do not answer.
        """
        try:
            secret = self._secret.read_bytes().strip()
            async with asyncio.timeout(_ANSWER_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1_000_000)
                try:
                    writer.write(secret + b"\n" + json.dumps(question).encode() + b"\n")
                    answer = json.loads(await reader.readline() or b"null")
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError) as error:
            raise UnavailableError("the simulators do not answer; are they running?") from error
        if not isinstance(answer, dict):
            raise UnavailableError("the simulators do not answer; are they running?")
        if "error" in answer:
            raise InvalidMessageError(str(answer["error"]))
        return answer
