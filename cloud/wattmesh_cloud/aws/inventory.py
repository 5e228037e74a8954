"""Every resource of a stack looked for by its own service: a stack's status alone is what somebody said about it.

``None`` from a look means that this type cannot be looked for here, which is told and never counted as found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

Clients = Callable[[str], Any]
"""Gives a client of a service in the stack's region."""
Look = Callable[[Clients, str], bool]


def _by(service: str, call: str, argument: str, *, listed: str | None = None) -> Look:
    """Found where a call with the physical name does not fail; with ``listed`` where it also lists something."""

    def look(clients: Clients, name: str) -> bool:
        answer = getattr(clients(service), call)(**{argument: name})
        return True if listed is None else bool(answer[listed])

    return look


def _alarm(clients: Clients, name: str) -> bool:
    return bool(clients("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"])


def _group(clients: Clients, name: str) -> bool:
    groups = clients("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    return any(one["logGroupName"] == name for one in groups)


def _filter(clients: Clients, name: str) -> bool:
    return bool(clients("logs").describe_metric_filters(filterNamePrefix=name)["metricFilters"])


def _key(clients: Clients, name: str) -> bool:
    pages = clients("kms").get_paginator("list_keys").paginate()
    return any(one["KeyId"] == name for page in pages for one in page["Keys"])


def _key_alias(clients: Clients, name: str) -> bool:
    pages = clients("kms").get_paginator("list_aliases").paginate()
    return any(one["AliasName"] == name for page in pages for one in page["Aliases"])


def _rule(clients: Clients, name: str) -> bool:
    return bool(clients("events").describe_rule(Name=name.rsplit("|", 1)[-1].rsplit("/", 1)[-1]))


def _queue(clients: Clients, name: str) -> bool:
    return bool(clients("sqs").get_queue_attributes(QueueUrl=name, AttributeNames=["QueueArn"])["Attributes"])


def _job_template(clients: Clients, name: str) -> bool:
    return bool(clients("iot").describe_job_template(jobTemplateId=name.rsplit("/", 1)[-1])["jobTemplateId"])


def _budget(clients: Clients, name: str) -> bool:
    account = clients("sts").get_caller_identity()["Account"]
    return bool(clients("budgets").describe_budget(AccountId=account, BudgetName=name)["Budget"])


def _glue_table(clients: Clients, name: str) -> bool:
    databases = clients("glue").get_databases()["DatabaseList"]
    return any(
        one["Name"] == name.rsplit("|", 1)[-1]
        for database in databases
        for one in clients("glue").get_tables(DatabaseName=database["Name"])["TableList"]
    )


def _permission(clients: Clients, name: str) -> bool:
    """A statement of a function's policy; its id alone names no function, so ours are gone through."""
    functions = clients("lambda").list_functions()["Functions"]
    for one in functions:
        try:
            policy = clients("lambda").get_policy(FunctionName=one["FunctionName"])["Policy"]
        except ClientError:
            continue
        if "events.amazonaws.com" in policy:
            return True
    return False


def _runtime(clients: Clients, name: str) -> bool:
    return bool(clients("bedrock-agentcore-control").get_agent_runtime(agentRuntimeId=name.rsplit("/", 1)[-1]))


def _gateway(clients: Clients, name: str) -> bool:
    return bool(clients("bedrock-agentcore-control").get_gateway(gatewayIdentifier=name.rsplit("/", 1)[-1]))


def _memory(clients: Clients, name: str) -> bool:
    return bool(clients("bedrock-agentcore-control").get_memory(memoryId=name.rsplit("/", 1)[-1]))


def _endpoint(clients: Clients, name: str) -> bool:
    """An endpoint's own ARN does not name its runtime in every form: all runtimes are gone through."""
    client = clients("bedrock-agentcore-control")
    for page in client.get_paginator("list_agent_runtimes").paginate():
        for runtime in page["agentRuntimes"]:
            endpoints = client.list_agent_runtime_endpoints(agentRuntimeId=runtime["agentRuntimeId"])
            for one in endpoints["runtimeEndpoints"]:
                if name in {one["agentRuntimeEndpointArn"], one.get("id")}:
                    return True
    return False


def _target(clients: Clients, name: str) -> bool:
    """``GATEWAY|TARGET``."""
    gateway, _, target = name.rpartition("|")
    found = clients("bedrock-agentcore-control").get_gateway_target(gatewayIdentifier=gateway, targetId=target)
    return bool(found)


_LOOKS: Mapping[str, Look] = {
    "AWS::DynamoDB::Table": _by("dynamodb", "describe_table", "TableName"),
    "AWS::S3::Bucket": _by("s3", "head_bucket", "Bucket"),
    "AWS::S3::BucketPolicy": _by("s3", "get_bucket_policy", "Bucket"),
    "AWS::KMS::Key": _key,
    "AWS::KMS::Alias": _key_alias,
    "AWS::SQS::Queue": _queue,
    "AWS::SNS::Topic": _by("sns", "get_topic_attributes", "TopicArn"),
    "AWS::IAM::Role": _by("iam", "get_role", "RoleName"),
    "AWS::Lambda::Function": _by("lambda", "get_function", "FunctionName"),
    "AWS::Lambda::EventSourceMapping": _by("lambda", "get_event_source_mapping", "UUID"),
    "AWS::Lambda::Permission": _permission,
    "AWS::Logs::LogGroup": _group,
    "AWS::Logs::MetricFilter": _filter,
    "AWS::CloudWatch::Alarm": _alarm,
    "AWS::CloudWatch::Dashboard": _by("cloudwatch", "get_dashboard", "DashboardName"),
    "AWS::Events::Rule": _rule,
    "AWS::IoT::TopicRule": _by("iot", "get_topic_rule", "ruleName"),
    "AWS::IoT::Policy": _by("iot", "get_policy", "policyName"),
    "AWS::IoT::ThingType": _by("iot", "describe_thing_type", "thingTypeName"),
    "AWS::IoT::ProvisioningTemplate": _by("iot", "describe_provisioning_template", "templateName"),
    "AWS::IoT::JobTemplate": _job_template,
    "AWS::Budgets::Budget": _budget,
    "AWS::Glue::Database": _by("glue", "get_database", "Name"),
    "AWS::Glue::Table": _glue_table,
    "AWS::Athena::WorkGroup": _by("athena", "get_work_group", "WorkGroup"),
    "AWS::BedrockAgentCore::Runtime": _runtime,
    "AWS::BedrockAgentCore::RuntimeEndpoint": _endpoint,
    "AWS::BedrockAgentCore::Gateway": _gateway,
    "AWS::BedrockAgentCore::GatewayTarget": _target,
    "AWS::BedrockAgentCore::Memory": _memory,
}

TYPES = frozenset(_LOOKS)
"""What can be looked for; a test holds the templates to it."""


def found(clients: Clients, kind: str, name: str) -> bool | None:
    """Whether a resource is there, asked of its own service; none where this type cannot be asked for, or not now."""
    look = _LOOKS.get(kind)
    if look is None or not name:
        return None if look is None else False
    try:
        return look(clients, name)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        gone = code in {"404", "NoSuchBucketPolicy", "NoSuchEntity", "InvalidRequestException"}
        missing = gone or "NotFound" in code or "NonExistent" in code or "UnknownResource" in code
        return False if missing else None
    except BotoCoreError:
        return None
