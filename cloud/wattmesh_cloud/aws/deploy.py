"""A deployment over CloudFormation: planned by change sets, done on a yes, looked for by every resource's own service.

What holds data is a stack of its own, which taking down leaves alone unless it is told otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, WaiterError
from wattmesh_a2a.clock import NS_PER_S, Clock
from wattmesh_a2a.errors import ConfigurationError, ConflictError, UnavailableError

from wattmesh_cloud.aws.deployment import DeploymentModel, Stack, conditions, parameters, parsed, stacks, template_text
from wattmesh_cloud.aws.inventory import found
from wattmesh_cloud.store.base import Table

_NOTHING = ("didn't contain changes", "No updates are to be performed")
_POLL_S = 5.0
_WAIT_S = 3600.0
_GONE = "does not exist"
_WHOLE = frozenset({"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"})

ClientOf = Callable[[str, str], Any]
"""A client of (service, region)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What would become of one resource."""

    stack: str
    region: str
    action: str
    """``Add``, ``Modify``, ``Remove``."""
    name: str
    kind: str
    replaced: bool = False
    """Made anew, and the old one taken away: what it holds is lost where it holds anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One resource of a stack that is there."""

    stack: str
    region: str
    name: str
    kind: str
    physical: str
    status: str
    found: bool | None
    """By its own service; none where that cannot be asked."""


def session_clients() -> ClientOf:
    """Clients of the account that the environment's credentials are of."""

    @cache
    def client(service: str, region: str) -> Any:
        return boto3.client(service, region_name=region)

    return client


class Deployment:
    """One deployment of a file in an account.

    Args:
        model: The file.
        clock: For change sets' names and the longest wait.
        clients: By service and region.
        pause: Between two looks at a stack, in seconds.

    Every method raises :class:`ConfigurationError` for what AWS refuses, and :class:`UnavailableError` where trying again may help.
    """

    def __init__(
        self,
        model: DeploymentModel,
        clock: Clock,
        clients: ClientOf | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._model = model
        self._clock = clock
        self._pause = pause
        self._clients = clients or session_clients()
        self._outputs: dict[tuple[str, str], dict[str, str]] = {}

    # -- planning

    def plan(self) -> list[Change]:
        """What :meth:`deploy` would do, from change sets that are taken back; all, where a stack's inputs are not there."""
        changes: list[Change] = []
        for stack in stacks(self._model):
            there = self._described(stack)
            values = parameters(self._model, stack, self._outputs)
            if values is None or there is None:
                changes += [
                    Change(stack=stack.name, region=stack.region, action="Add", name=name, kind=kind)
                    for name, kind in self._wanted(stack)
                ]
                continue
            made = self._change_set(stack, values)
            if made is not None:
                changes += self._changes(stack, made)
                self._call(stack, "delete_change_set", ChangeSetName=made)
        return changes

    def _wanted(self, stack: Stack) -> list[tuple[str, str]]:
        """Name and type of every resource that a stack should have."""
        resources = parsed(template_text(stack.part))["Resources"]
        true = conditions(self._model, stack)
        return [
            (name, str(one["Type"]))
            for name, one in resources.items()
            if "Condition" not in one or true[one["Condition"]]
        ]

    def _described(self, stack: Stack) -> dict[str, Any] | None:
        """The stack, if it is there and usable; its outputs are kept."""
        try:
            answer = self._clients("cloudformation", stack.region).describe_stacks(StackName=stack.name)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and _GONE in str(error):
                return None
            raise _failure(error, stack) from error
        one: dict[str, Any] = answer["Stacks"][0]
        if one["StackStatus"] in {"REVIEW_IN_PROGRESS", "DELETE_COMPLETE"}:
            return None
        if stack.keeps_data and one["StackStatus"] in _WHOLE:
            self._outputs[stack.name, stack.region] = self._made(stack)
        return one

    def _made(self, stack: Stack) -> dict[str, str]:
        """What the stacks behind need of one that holds data: from its resources and the key's own service."""
        physical = {one["LogicalResourceId"]: str(one.get("PhysicalResourceId", "")) for one in self._listed(stack)}
        try:
            pages = self._clients("kms", stack.region).get_paginator("list_keys").paginate()
            keys = {one["KeyId"]: one["KeyArn"] for page in pages for one in page["Keys"]}
        except (ClientError, BotoCoreError) as error:
            raise _failure(error, stack) from error
        key = physical["Key"]
        if key not in keys:
            raise ConfigurationError(f"{stack.name} in {stack.region}: its key {key} is not there")
        return {"KeyArn": keys[key], "KeyId": key, "LakeBucketName": physical["LakeBucket"]}

    def _listed(self, stack: Stack) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = []
        arguments: dict[str, Any] = {}
        while True:
            answer = self._call(stack, "list_stack_resources", **arguments)
            listed += [one for one in answer["StackResourceSummaries"] if one["LogicalResourceId"]]
            if "NextToken" not in answer:
                return listed
            arguments["NextToken"] = answer["NextToken"]

    def _change_set(self, stack: Stack, values: Mapping[str, str]) -> str | None:
        """A change set that can be executed; none where there is nothing to change."""
        there = self._described(stack)
        if there is not None and there["StackStatus"].endswith("_IN_PROGRESS"):
            raise ConflictError(
                f"{stack.name} in {stack.region} is being changed ({there['StackStatus']}); wait for it"
            )
        if there is not None and there["StackStatus"] in {"ROLLBACK_COMPLETE", "CREATE_FAILED"}:
            raise ConfigurationError(
                f"{stack.name} in {stack.region} was never made whole: delete it, then deploy again"
            )
        name = f"wattmesh-{self._clock.utc_ns() // 1_000_000}"
        try:
            self._call(
                stack,
                "create_change_set",
                ChangeSetName=name,
                ChangeSetType="CREATE" if there is None else "UPDATE",
                TemplateBody=template_text(stack.part),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
                Capabilities=["CAPABILITY_IAM"],
                Tags=[{"Key": key, "Value": value} for key, value in self._tags(stack).items()],
            )
        except ConfigurationError as error:
            if any(text in str(error) for text in _NOTHING):
                return None
            raise
        for _ in self._pauses():
            answer = self._call(stack, "describe_change_set", ChangeSetName=name)
            status, reason = answer["Status"], str(answer.get("StatusReason", ""))
            if status == "CREATE_COMPLETE":
                return name
            if status == "FAILED":
                self._call(stack, "delete_change_set", ChangeSetName=name)
                if any(text in reason for text in _NOTHING):
                    return None
                raise ConfigurationError(f"{stack.name} in {stack.region}: {reason}")
        raise UnavailableError(f"{stack.name} in {stack.region}: no change set within an hour")

    def _changes(self, stack: Stack, name: str) -> list[Change]:
        found_changes: list[Change] = []
        arguments: dict[str, Any] = {"ChangeSetName": name}
        while True:
            answer = self._call(stack, "describe_change_set", **arguments)
            for one in answer.get("Changes", ()):
                change = one["ResourceChange"]
                found_changes.append(
                    Change(
                        stack=stack.name,
                        region=stack.region,
                        action=change["Action"],
                        name=change["LogicalResourceId"],
                        kind=change["ResourceType"],
                        replaced=change.get("Replacement") == "True",
                    )
                )
            if "NextToken" not in answer:
                return found_changes
            arguments["NextToken"] = answer["NextToken"]

    def _tags(self, stack: Stack) -> dict[str, str]:
        try:
            package = version("wattmesh")
        except PackageNotFoundError:
            package = "source"
        return {
            "wattmesh:environment": self._model.environment,
            "wattmesh:part": stack.part,
            "wattmesh:version": package,
        }

    # -- doing

    def deploy(self, told: Callable[[str], None]) -> None:
        """Make or change every stack in order, each whole before the next; then the tables' copies."""
        for stack in stacks(self._model):
            where = f"{stack.name} in {stack.region}"
            values = parameters(self._model, stack, self._outputs)
            if values is None:
                raise ConfigurationError(f"{where}: a stack before it has no outputs")
            made = self._change_set(stack, values)
            if made is None:
                told(f"{where}: as it should be")
                continue
            new = self._described(stack) is None
            told(f"{where}: {'being made' if new else 'being changed'}")
            self._call(stack, "execute_change_set", ChangeSetName=made)
            self._wait(stack)
            told(f"{where}: done")
        if self._model.standby is not None:
            self._replicate(told)

    def _wait(self, stack: Stack) -> None:
        for _ in self._pauses():
            there = self._described(stack)
            status = "" if there is None else str(there["StackStatus"])
            if status in {"CREATE_COMPLETE", "UPDATE_COMPLETE"}:
                return
            if there is not None and ("ROLLBACK" in status or "FAILED" in status) and "IN_PROGRESS" not in status:
                raise ConfigurationError(f"{stack.name} in {stack.region}: {status}: {self._first_failure(stack)}")
        raise UnavailableError(f"{stack.name} in {stack.region} is not done within an hour")

    def _first_failure(self, stack: Stack) -> str:
        events = self._call(stack, "describe_stack_events")["StackEvents"]
        failed = [one for one in events if str(one.get("ResourceStatus", "")).endswith("_FAILED")]
        if not failed:
            return "no event says why"
        first = failed[-1]
        return f"{first['LogicalResourceId']}: {first.get('ResourceStatusReason', 'no reason given')}"

    def _replicate(self, told: Callable[[str], None]) -> None:
        """Each table as a global table with a copy in the second region; what is there is left as it is."""
        assert self._model.standby is not None
        region = self._model.standby.region
        copy = self._outputs[f"wattmesh-{self._model.environment}-standby", region]
        client = self._clients("dynamodb", self._model.region)
        for table in Table:
            name = f"wattmesh-{self._model.environment}-{table}"
            try:
                known = client.describe_table(TableName=name)["Table"].get("Replicas", ())
                if any(one["RegionName"] == region for one in known):
                    continue
                create = {"RegionName": region, "KMSMasterKeyId": copy["KeyArn"]}
                client.update_table(TableName=name, ReplicaUpdates=[{"Create": create}])
                for _ in self._pauses():
                    if client.describe_table(TableName=name)["Table"]["TableStatus"] == "ACTIVE":
                        break
            except (ClientError, BotoCoreError) as error:
                raise ConfigurationError(f"{name}: no copy in {region}: {error}") from error
            told(f"{name}: copied to {region}")

    def put_keys(self, keys: Mapping[str, str]) -> None:
        """The sites' keys (site → the file's text) as encrypted parameters, for the telemetry function of each region."""
        regions = dict.fromkeys(one.region for one in stacks(self._model) if one.part == "services")
        environment = self._model.environment
        for region in regions:
            client = self._clients("ssm", region)
            for site, key in keys.items():
                try:
                    client.put_parameter(
                        Name=f"/wattmesh/{environment}/keys/{site}",
                        Value=key,
                        Type="SecureString",
                        KeyId=f"alias/wattmesh-{environment}",
                        Overwrite=True,
                    )
                except (ClientError, BotoCoreError) as error:
                    raise ConfigurationError(f"the key of {site} in {region}: {error}") from error

    def invoke(self, agent: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        """What an agent's runtime (its ``prod`` endpoint) answers.

        Args:
            agent: Its name (``market-supervisor``).
            payload: As the agents' entry point takes it.
        """
        from wattmesh_cloud.agents.agentcore import invoke_runtime

        stack = next((one for one in stacks(self._model) if one.part == "agents"), None)
        there = None if stack is None else self._described(stack)
        if stack is None or there is None:
            raise ConfigurationError(
                f"{self._model.environment} has no agents deployed; agents: in its file, then deploy"
            )
        runtimes = {one["OutputKey"]: str(one["OutputValue"]) for one in there.get("Outputs", ())}
        name = "".join(part.title() for part in agent.split("-")) + "Runtime"
        if name not in runtimes:
            known = sorted(one for one in runtimes if one.endswith("Runtime"))
            raise ConfigurationError(f"{stack.name} has no runtime of {agent}; it has {', '.join(known) or 'none'}")
        try:
            client = self._clients("bedrock-agentcore", stack.region)
            return invoke_runtime(client, runtimes[name], f"wattmesh-by-hand-{self._clock.utc_ns()}", payload)
        except (ClientError, BotoCoreError) as error:
            raise _failure(error, stack) from error

    # -- looking

    def status(self) -> tuple[list[tuple[Stack, str]], list[Resource]]:
        """Every stack with what it says of itself, and every resource with whether its own service knows it."""
        states: list[tuple[Stack, str]] = []
        resources: list[Resource] = []
        for stack in stacks(self._model):
            there = self._described(stack)
            states.append((stack, "absent" if there is None else str(there["StackStatus"])))
            if there is not None:
                resources += self._resources(stack)
        return states, resources

    def _resources(self, stack: Stack) -> list[Resource]:
        listed = self._listed(stack)
        known = {one["LogicalResourceId"] for one in listed}
        lacking = [
            Resource(
                stack=stack.name, region=stack.region, name=name, kind=kind, physical="", status="absent", found=False
            )
            for name, kind in self._wanted(stack)
            if name not in known
        ]  # fmt: skip
        return lacking + [
            Resource(
                stack=stack.name,
                region=stack.region,
                name=one["LogicalResourceId"],
                kind=one["ResourceType"],
                physical=str(one.get("PhysicalResourceId", "")),
                status=one["ResourceStatus"],
                found=found(
                    lambda service: self._clients(service, stack.region),
                    one["ResourceType"],
                    str(one.get("PhysicalResourceId", "")),
                ),
            )
            for one in listed
        ]

    # -- taking down

    def destroy(self, told: Callable[[str], None], *, with_data: bool = False) -> None:
        """Take the stacks away, last first; those with data stay unless told otherwise.

        Then nothing is left of them but the keys, which AWS deletes after 30 days.
        """
        for stack in reversed(stacks(self._model)):
            where = f"{stack.name} in {stack.region}"
            if stack.keeps_data and not with_data:
                told(f"{where}: kept, it holds data")
                continue
            if self._described(stack) is None:
                continue
            kept = self._resources(stack)
            if stack.keeps_data:
                self._unprotect(kept, told)
            self._call(stack, "delete_stack")
            self._wait_gone(stack)
            if with_data:
                self._remove_kept(kept, told)
            told(f"{where}: gone")

    def _wait_gone(self, stack: Stack) -> None:
        for _ in self._pauses():
            there = self._described(stack)
            if there is None:
                return
            if there["StackStatus"] == "DELETE_FAILED":
                raise ConfigurationError(f"{stack.name} in {stack.region}: {self._first_failure(stack)}")
        raise UnavailableError(f"{stack.name} in {stack.region} is not gone within an hour")

    def _unprotect(self, resources: list[Resource], told: Callable[[str], None]) -> None:
        for one in resources:
            if one.kind != "AWS::DynamoDB::Table":
                continue
            client = self._clients("dynamodb", one.region)
            replicas = client.describe_table(TableName=one.physical)["Table"].get("Replicas", ())
            gone = [
                {"Delete": {"RegionName": each["RegionName"]}} for each in replicas if each["RegionName"] != one.region
            ]
            if gone:
                client.update_table(TableName=one.physical, ReplicaUpdates=gone)
                told(f"{one.physical}: its copy is taken away")
            client.update_table(TableName=one.physical, DeletionProtectionEnabled=False)

    def _remove_kept(self, resources: list[Resource], told: Callable[[str], None]) -> None:
        """What a deleted stack leaves (``DeletionPolicy: Retain``)."""
        for one in resources:
            try:
                match one.kind:
                    case "AWS::DynamoDB::Table":
                        self._clients("dynamodb", one.region).delete_table(TableName=one.physical)
                    case "AWS::S3::Bucket":
                        self._empty(one)
                        self._clients("s3", one.region).delete_bucket(Bucket=one.physical)
                    case "AWS::Logs::LogGroup":
                        self._clients("logs", one.region).delete_log_group(logGroupName=one.physical)
                    case "AWS::KMS::Key":
                        self._clients("kms", one.region).schedule_key_deletion(
                            KeyId=one.physical, PendingWindowInDays=30
                        )
                    case "AWS::BedrockAgentCore::Memory":
                        name = one.physical.rsplit("/", 1)[-1]
                        self._clients("bedrock-agentcore-control", one.region).delete_memory(memoryId=name)
                    case _:
                        continue
            except (ClientError, BotoCoreError) as error:
                told(f"{one.physical}: not deleted: {error}")
                continue
            told(f"{one.physical}: deleted")

    def _empty(self, bucket: Resource) -> None:
        client = self._clients("s3", bucket.region)
        for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket.physical):
            held = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            for at in range(0, len(held), 1000):
                objects = [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in held[at : at + 1000]]
                client.delete_objects(Bucket=bucket.physical, Delete={"Objects": objects, "Quiet": True})

    # -- the service

    def _call(self, stack: Stack, name: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(self._clients("cloudformation", stack.region), name)(
                StackName=stack.name, **arguments
            )
        except (ClientError, BotoCoreError, WaiterError) as error:
            raise _failure(error, stack) from error
        return answer

    def _pauses(self) -> Iterator[None]:
        """At once, then every few seconds, for an hour."""
        deadline = self._clock.monotonic_ns() + round(_WAIT_S * NS_PER_S)
        yield
        while self._clock.monotonic_ns() < deadline:
            self._pause(_POLL_S)
            yield


def _failure(error: Exception, stack: Stack) -> Exception:
    where = f"{stack.name} in {stack.region}"
    if isinstance(error, NoCredentialsError):
        return ConfigurationError("no AWS credentials (aws configure, or AWS_PROFILE)")
    if isinstance(error, ClientError):
        code = error.response["Error"]["Code"]
        if code in {"Throttling", "ThrottlingException", "ServiceUnavailable", "InternalFailure"}:
            return UnavailableError(f"{where}: {error}")
        return ConfigurationError(f"{where}: {error}")
    return UnavailableError(f"{where}: {error}")
