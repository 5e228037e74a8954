"""The agents' template, whose repeated parts (five runtimes, five targets with their tools' schemas) are made from the code.

python -m wattmesh_cloud.aws.agents_template > cloud/infra/agents.yaml
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from wattmesh_cloud.tools.catalogue import SERVICES
from wattmesh_cloud.tools.schemas import gateway_schema

AGENTS = ("market-supervisor", "forecasting", "grid-optimisation", "producer", "consumer")
SUPERVISOR = AGENTS[0]
ACTIONS = "energy-trading-actions"
"""Behind a gateway of its own: a model proposes, and has no way to act."""
ARN = "arn:${AWS::Partition}:%s:${AWS::Region}:${AWS::AccountId}:"

_HEAD = """\
# Made by `python -m wattmesh_cloud.aws.agents_template`; change it there.
AWSTemplateFormatVersion: "2010-09-09"
Description: WattMesh, the agents on Bedrock AgentCore - five runtimes with their prod endpoints, two gateways of tools, a memory.
"""


class _Tag(str):
    """A scalar with one of CloudFormation's short forms in front."""

    __slots__ = ("tag",)
    tag: str


def _tagged(tag: str, text: str) -> _Tag:
    made = _Tag(text)
    made.tag = tag
    return made


def sub(text: str) -> _Tag:
    """``!Sub``."""
    return _tagged("!Sub", text)


def ref(name: str) -> _Tag:
    """``!Ref``."""
    return _tagged("!Ref", name)


def att(name: str) -> _Tag:
    """``!GetAtt``."""
    return _tagged("!GetAtt", name)


class Dumper(yaml.SafeDumper):
    """No anchors: CloudFormation has none."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


Dumper.add_representer(_Tag, lambda dumper, data: dumper.represent_scalar(data.tag, str(data), style='"'))


def camel(name: str) -> str:
    """``market-supervisor`` → ``MarketSupervisor``."""
    return "".join(part.capitalize() for part in name.split("-"))


def tool_definition(one: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as CloudFormation spells it."""
    return {
        "Name": one["name"],
        "Description": one["description"],
        "InputSchema": _schema(one["inputSchema"]),
    }


def _schema(one: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": one["type"]}
    if "description" in one:
        made["Description"] = one["description"]
    if "properties" in one:
        made["Properties"] = {name: _schema(value) for name, value in one["properties"].items()}
    if "required" in one:
        made["Required"] = list(one["required"])
    if "items" in one:
        made["Items"] = _schema(one["items"])
    return made


def _parameters() -> dict[str, Any]:
    text = {"Type": "String"}
    return {
        "Environment": {**text, "Default": "staging", "AllowedPattern": "^[a-z][a-z0-9]{1,15}$"},
        "KeyArn": {**text, "AllowedPattern": "^arn:aws[a-z-]*:kms:.+", "Description": "The key of this region"},
        "CodeBucket": {**text, "Description": "Bucket with the agents' code"},
        "CodeKey": {**text, "Description": "Key of the agents' code (a zip for arm64, Python 3.13)"},
        "EntryPoint": {**text, "Default": "wattmesh_cloud/agents/agentcore.py", "Description": "In that zip"},
        "ModelId": {**text, "Default": "global.anthropic.claude-sonnet-4-6", "Description": "An inference profile"},
        "ProdVersion": {
            **text,
            "Default": "",
            "Description": "The version that the prod endpoints are pinned to; none for the newest",
        },
    }


def role(service: str, statements: list[dict[str, Any]], *, condition: bool = True) -> dict[str, Any]:
    """A role for one service of AWS, in this account alone."""
    trust: dict[str, Any] = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if condition:
        trust["Condition"] = {"StringEquals": {"aws:SourceAccount": ref("AWS::AccountId")}}
    return {
        "Type": "AWS::IAM::Role",
        "Properties": {
            "AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": [trust]},
            "Policies": [
                {
                    "PolicyName": "own",
                    "PolicyDocument": {
                        "Version": "2012-10-17",
                        "Statement": [{"Effect": "Allow", **one} for one in statements],
                    },
                }
            ],
        },
    }


def _runtime_role(agent: str) -> dict[str, Any]:
    logs = ARN % "logs" + "log-group:/aws/bedrock-agentcore/runtimes/wattmesh_${Environment}_*"
    statements: list[dict[str, Any]] = [
        {
            "Sid": "Think",
            "Action": ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"],
            "Resource": [
                sub(ARN % "bedrock" + "inference-profile/${ModelId}"),
                sub("arn:${AWS::Partition}:bedrock:*::foundation-model/anthropic.*"),
            ],
        },
        {"Sid": "UseTools", "Action": "bedrock-agentcore:InvokeGateway", "Resource": att("Gateway.GatewayArn")},
        {
            "Sid": "Remember",
            "Action": [
                "bedrock-agentcore:CreateEvent",
                "bedrock-agentcore:GetEvent",
                "bedrock-agentcore:ListEvents",
                "bedrock-agentcore:RetrieveMemoryRecords",
            ],
            "Resource": att("Memory.MemoryArn"),
        },
        {
            "Sid": "Log",
            "Action": ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
            "Resource": [sub(logs), sub(logs + ":log-stream:*")],
        },
        {"Sid": "Trace", "Action": ["xray:PutTraceSegments", "xray:PutTelemetryRecords"], "Resource": "*"},
        {
            "Sid": "OwnCode",
            "Action": "s3:GetObject",
            "Resource": sub("arn:${AWS::Partition}:s3:::${CodeBucket}/${CodeKey}"),
        },
        {"Sid": "Decrypt", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": ref("KeyArn")},
    ]
    if agent == SUPERVISOR:
        others = [att(f"{camel(other)}Runtime.AgentRuntimeArn") for other in AGENTS if other != SUPERVISOR]
        below = [sub(f"${{{camel(other)}Runtime.AgentRuntimeArn}}/*") for other in AGENTS if other != SUPERVISOR]
        statements.append(
            {
                "Sid": "AskTheOthers",
                "Action": "bedrock-agentcore:InvokeAgentRuntime",
                "Resource": [*others, *below],
            }
        )
    return role("bedrock-agentcore.amazonaws.com", statements)


def _runtime(agent: str) -> dict[str, Any]:
    own = {
        "WATTMESH_AGENT": agent,
        "WATTMESH_GATEWAY_URL": att("Gateway.GatewayUrl"),
        "WATTMESH_MEMORY": att("Memory.MemoryId"),
        "WATTMESH_MODEL": ref("ModelId"),
    }
    if agent == SUPERVISOR:
        for other in AGENTS:
            if other != SUPERVISOR:
                name = f"WATTMESH_RUNTIME_{other.upper().replace('-', '_')}"
                own[name] = att(f"{camel(other)}Runtime.AgentRuntimeArn")
    return {
        "Type": "AWS::BedrockAgentCore::Runtime",
        "Properties": {
            "AgentRuntimeName": sub(f"wattmesh_${{Environment}}_{agent.replace('-', '_')}"),
            "Description": f"The agent {agent}: proposes, never acts",
            "RoleArn": att(f"{camel(agent)}Role.Arn"),
            "AgentRuntimeArtifact": {
                "CodeConfiguration": {
                    "Code": {"S3": {"Bucket": ref("CodeBucket"), "Prefix": ref("CodeKey")}},
                    "Runtime": "PYTHON_3_13",
                    "EntryPoint": [ref("EntryPoint")],
                }
            },
            "NetworkConfiguration": {"NetworkMode": "PUBLIC"},
            "ProtocolConfiguration": "HTTP",
            "LifecycleConfiguration": {"IdleRuntimeSessionTimeout": 900, "MaxLifetime": 28800},
            "EnvironmentVariables": own,
        },
    }


def _endpoint(agent: str) -> dict[str, Any]:
    version = {"Fn::If": ["Pinned", ref("ProdVersion"), att(f"{camel(agent)}Runtime.AgentRuntimeVersion")]}
    return {
        "Type": "AWS::BedrockAgentCore::RuntimeEndpoint",
        "Properties": {
            "AgentRuntimeId": att(f"{camel(agent)}Runtime.AgentRuntimeId"),
            "AgentRuntimeVersion": version,
            "Name": "prod",
            "Description": "What callers use; a version moves here when it is good",
        },
    }


def _target(service: str) -> dict[str, Any]:
    function = sub(ARN % "lambda" + f"function:wattmesh-${{Environment}}-{service}")
    return {
        "Type": "AWS::BedrockAgentCore::GatewayTarget",
        "Properties": {
            "GatewayIdentifier": att(f"{'Actions' if service == ACTIONS else ''}Gateway.GatewayIdentifier"),
            "Name": service,
            "Description": f"The tools of {service}",
            "CredentialProviderConfigurations": [{"CredentialProviderType": "GATEWAY_IAM_ROLE"}],
            "TargetConfiguration": {
                "Mcp": {
                    "Lambda": {
                        "LambdaArn": function,
                        "ToolSchema": {"InlinePayload": [tool_definition(one) for one in gateway_schema(service)]},
                    }
                }
            },
        },
    }


def _gateway_role(services: list[str]) -> dict[str, Any]:
    functions = [sub(ARN % "lambda" + f"function:wattmesh-${{Environment}}-{one}") for one in services]
    return role(
        "bedrock-agentcore.amazonaws.com",
        [
            {"Sid": "CallTheTools", "Action": "lambda:InvokeFunction", "Resource": functions},
            {"Sid": "Decrypt", "Action": ["kms:Decrypt", "kms:GenerateDataKey"], "Resource": ref("KeyArn")},
        ],
    )


def _gateway(name: str, role: str, about: str) -> dict[str, Any]:
    return {
        "Type": "AWS::BedrockAgentCore::Gateway",
        "Properties": {
            "Name": sub(name),
            "Description": about,
            "RoleArn": att(f"{role}.Arn"),
            "AuthorizerType": "AWS_IAM",
            "ProtocolType": "MCP",
            "KmsKeyArn": ref("KeyArn"),
        },
    }


def template() -> dict[str, Any]:
    """The template, as far as YAML has to be told."""
    reads = [one for one in SERVICES if one != ACTIONS]
    resources: dict[str, Any] = {
        "GatewayRole": _gateway_role(reads),
        "Gateway": _gateway(
            "wattmesh-${Environment}", "GatewayRole", "What agents may use: the four tool services that read"
        ),
        "ActionsGatewayRole": _gateway_role([ACTIONS]),
        "ActionsGateway": _gateway(
            "wattmesh-${Environment}-actions",
            "ActionsGatewayRole",
            "What people may use; no agent has a permission for it",
        ),
        "Memory": {
            "Type": "AWS::BedrockAgentCore::Memory",
            "DeletionPolicy": "Retain",
            "UpdateReplacePolicy": "Retain",
            "Properties": {
                "Name": sub("wattmesh_${Environment}"),
                "Description": "What was decided, why, and what came of it",
                "EventExpiryDuration": 365,
                "EncryptionKeyArn": ref("KeyArn"),
            },
        },
    }
    for service in SERVICES:
        resources[f"{camel(service)}Target"] = _target(service)
    for agent in (*AGENTS[1:], SUPERVISOR):
        resources[f"{camel(agent)}Role"] = _runtime_role(agent)
        resources[f"{camel(agent)}Runtime"] = _runtime(agent)
        resources[f"{camel(agent)}Prod"] = _endpoint(agent)
    outputs = {f"{camel(one)}Runtime": {"Value": att(f"{camel(one)}Runtime.AgentRuntimeArn")} for one in AGENTS}
    return {
        "Parameters": _parameters(),
        "Conditions": {"Pinned": {"Fn::Not": [{"Fn::Equals": [ref("ProdVersion"), ""]}]}},
        "Resources": resources,
        "Outputs": {
            **outputs,
            "GatewayUrl": {"Value": att("Gateway.GatewayUrl")},
            "ActionsGatewayUrl": {"Value": att("ActionsGateway.GatewayUrl")},
            "MemoryId": {"Value": att("Memory.MemoryId")},
        },
    }


def text() -> str:
    """The file."""
    return _HEAD + yaml.dump(template(), Dumper=Dumper, sort_keys=False, width=120)


if __name__ == "__main__":
    sys.stdout.write(text())
