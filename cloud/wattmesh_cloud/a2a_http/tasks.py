"""Tasks and push configurations on disk, bounded, each seen by its owner alone."""

from __future__ import annotations

import base64
import binascii
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from a2a.server.context import ServerCallContext
from a2a.server.tasks import PushNotificationConfigStore, TaskStore
from a2a.server.tasks.push_notification_config_store import normalize_push_notification_config
from a2a.types import ListTasksRequest, ListTasksResponse, Task, TaskPushNotificationConfig
from a2a.utils.errors import InvalidParamsError

_TASKS_AN_OWNER = 2000
_TASKS = 100_000
_KEEP_S = 7 * 86_400
_TIDY_EVERY = 200
_PAGE = 50
_CONFIGS_A_TASK = 5


class Tasks:
    """The database of all agents' tasks.

    Args:
        path: The file.
        now: UTC in seconds since 1970, injected by tests.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # credentials for receivers of notifications stand in it
        self.now = now
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS tasks (agent TEXT, owner TEXT, id TEXT, context TEXT NOT NULL, state INTEGER NOT NULL,"
            " stamp_ns INTEGER NOT NULL, saved REAL NOT NULL, task BLOB NOT NULL, PRIMARY KEY (agent, owner, id)) WITHOUT ROWID"
        )
        self.db.execute("CREATE INDEX IF NOT EXISTS tasks_by_time ON tasks (agent, owner, stamp_ns, id)")
        self.db.execute("CREATE INDEX IF NOT EXISTS tasks_by_age ON tasks (saved)")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS pushes (agent TEXT, owner TEXT, task TEXT, id TEXT, config BLOB NOT NULL,"
            " PRIMARY KEY (agent, task, owner, id)) WITHOUT ROWID"
        )
        self._saved = 0

    def saved(self) -> None:
        """Now and then: let go of what is old or too much, and of what belonged to it."""
        self._saved += 1
        if self._saved % _TIDY_EVERY:
            return
        self.db.execute("DELETE FROM tasks WHERE saved < ?", (self.now() - _KEEP_S,))
        (count,) = self.db.execute("SELECT COUNT(*) FROM tasks").fetchone()
        if count > _TASKS:
            self.db.execute(
                "DELETE FROM tasks WHERE (agent, owner, id) IN (SELECT agent, owner, id FROM tasks ORDER BY saved LIMIT ?)",
                (count - _TASKS,),
            )
        crowded = self.db.execute(
            "SELECT owner, COUNT(*) FROM tasks GROUP BY owner HAVING COUNT(*) > ?", (_TASKS_AN_OWNER,)
        ).fetchall()
        for owner, many in crowded:
            self.db.execute(
                "DELETE FROM tasks WHERE (agent, owner, id) IN"
                " (SELECT agent, owner, id FROM tasks WHERE owner = ? ORDER BY saved LIMIT ?)",
                (owner, many - _TASKS_AN_OWNER),
            )
        self.db.execute(
            "DELETE FROM pushes WHERE NOT EXISTS (SELECT 1 FROM tasks WHERE tasks.agent = pushes.agent"
            " AND tasks.owner = pushes.owner AND tasks.id = pushes.task)"
        )

    def close(self) -> None:
        """Release the file."""
        self.db.close()


class AgentTasks(TaskStore):
    """One agent's tasks."""

    def __init__(self, tasks: Tasks, agent: str) -> None:
        self._tasks, self._agent = tasks, agent

    async def save(self, task: Task, context: ServerCallContext) -> None:
        """See ``a2a.server.tasks.TaskStore``."""
        stamp = task.status.timestamp.ToNanoseconds() if task.status.HasField("timestamp") else 0
        self._tasks.db.execute(
            "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._agent, context.user.user_name, task.id, task.context_id, task.status.state, stamp, self._tasks.now(),
                task.SerializeToString(),
            ),
        )  # fmt: skip
        self._tasks.saved()

    async def get(self, task_id: str, context: ServerCallContext) -> Task | None:
        """See ``a2a.server.tasks.TaskStore``; another owner's is none."""
        row = self._tasks.db.execute(
            "SELECT task FROM tasks WHERE agent = ? AND owner = ? AND id = ?",
            (self._agent, context.user.user_name, task_id),
        ).fetchone()
        return None if row is None else Task.FromString(row[0])

    async def list(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        """See ``a2a.server.tasks.TaskStore``; the newest first."""
        where = ["agent = ?", "owner = ?"]
        values: list[object] = [self._agent, context.user.user_name]
        if params.context_id:
            where.append("context = ?")
            values.append(params.context_id)
        if params.status:
            where.append("state = ?")
            values.append(int(params.status))
        if params.HasField("status_timestamp_after"):
            where.append("stamp_ns >= ?")
            values.append(params.status_timestamp_after.ToNanoseconds())
        (total,) = self._tasks.db.execute(f"SELECT COUNT(*) FROM tasks WHERE {' AND '.join(where)}", values).fetchone()  # noqa: S608
        if params.page_token:
            where.append("(stamp_ns, id) < (?, ?)")
            values += _place(params.page_token)
        size = params.page_size or _PAGE
        rows = self._tasks.db.execute(
            f"SELECT stamp_ns, id, task FROM tasks WHERE {' AND '.join(where)} ORDER BY stamp_ns DESC, id DESC LIMIT ?",  # noqa: S608
            [*values, size + 1],
        ).fetchall()
        following = _token(rows[size - 1][0], rows[size - 1][1]) if len(rows) > size else ""
        return ListTasksResponse(
            tasks=[Task.FromString(row[2]) for row in rows[:size]],
            next_page_token=following,
            total_size=total,
            page_size=size,
        )

    async def delete(self, task_id: str, context: ServerCallContext) -> None:
        """See ``a2a.server.tasks.TaskStore``."""
        self._tasks.db.execute(
            "DELETE FROM tasks WHERE agent = ? AND owner = ? AND id = ?", (self._agent, context.user.user_name, task_id)
        )


class AgentPushes(PushNotificationConfigStore):
    """Where the events of one agent's tasks are pushed to."""

    def __init__(self, tasks: Tasks, agent: str) -> None:
        self._db, self._agent = tasks.db, agent

    async def set_info(
        self, task_id: str, notification_config: TaskPushNotificationConfig, context: ServerCallContext
    ) -> TaskPushNotificationConfig:
        """See ``a2a.server.tasks.PushNotificationConfigStore``."""
        stored = normalize_push_notification_config(task_id, notification_config)
        owner = context.user.user_name
        held = {one.id for one in await self.get_info(task_id, context)}
        if stored.id not in held and len(held) >= _CONFIGS_A_TASK:
            raise InvalidParamsError(message=f"a task has {_CONFIGS_A_TASK} push configurations at most")
        self._db.execute(
            "INSERT OR REPLACE INTO pushes VALUES (?, ?, ?, ?, ?)",
            (self._agent, owner, task_id, stored.id, stored.SerializeToString()),
        )
        return stored

    async def get_info(self, task_id: str, context: ServerCallContext) -> list[TaskPushNotificationConfig]:
        """See ``a2a.server.tasks.PushNotificationConfigStore``."""
        rows = self._db.execute(
            "SELECT config FROM pushes WHERE agent = ? AND task = ? AND owner = ? ORDER BY id",
            (self._agent, task_id, context.user.user_name),
        )
        return [TaskPushNotificationConfig.FromString(row[0]) for row in rows]

    async def get_info_for_dispatch(self, task_id: str) -> list[TaskPushNotificationConfig]:
        """See ``a2a.server.tasks.PushNotificationConfigStore``."""
        rows = self._db.execute("SELECT config FROM pushes WHERE agent = ? AND task = ?", (self._agent, task_id))
        return [TaskPushNotificationConfig.FromString(row[0]) for row in rows]

    async def delete_info(self, task_id: str, context: ServerCallContext, config_id: str | None = None) -> None:
        """See ``a2a.server.tasks.PushNotificationConfigStore``."""
        self._db.execute(
            "DELETE FROM pushes WHERE agent = ? AND task = ? AND owner = ? AND (? IS NULL OR id = ?)",
            (self._agent, task_id, context.user.user_name, config_id, config_id),
        )


def _token(stamp_ns: int, name: str) -> str:
    return base64.urlsafe_b64encode(f"{stamp_ns}:{name}".encode()).decode()


def _place(token: str) -> tuple[int, str]:
    try:
        stamp, _, name = base64.urlsafe_b64decode(token.encode()).decode().partition(":")
        return int(stamp), name
    except (ValueError, binascii.Error) as error:
        raise InvalidParamsError(message="pageToken is none of ours") from error
