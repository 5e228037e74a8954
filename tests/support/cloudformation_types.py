"""Resource types that moto's CloudFormation passes over: made by their own services' calls, with the template's properties.

moto says CREATE_COMPLETE for a type that it does not know and makes nothing; some others it makes and lists without a name.
Each class here makes the resource by a boto3 client from the resolved properties, so that botocore checks every name and type
in the template against the service's own model.
"""

import json
from typing import Any

import boto3
from moto.core.common_models import CloudFormationModel

_FREE = {"EnvironmentVariables", "Properties"}
"""Maps whose keys are names of somebody's choice."""


def camel(value: Any) -> Any:
    """``{"RoleArn": …}`` → ``{"roleArn": …}``, as the APIs of some services spell it."""
    if isinstance(value, list):
        return [camel(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {}
    for key, one in value.items():
        inner = {name: camel(part) for name, part in one.items()} if key in _FREE else camel(one)
        made[key[:1].lower() + key[1:]] = inner
    return made


class _Made(CloudFormationModel):
    """A resource with a name and attributes."""

    __module__ = "moto.others"  # moto wants the service's name there

    def __init__(self, name: str, attributes: dict[str, str] | None = None) -> None:
        self.name, self.attributes = name, attributes or {}

    @property
    def physical_resource_id(self) -> str:
        return self.name

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True

    def get_cfn_attribute(self, attribute_name: str) -> str:
        return self.attributes[attribute_name]

    @staticmethod
    def cloudformation_name_type() -> str:
        return ""

    @staticmethod
    def cloudformation_type() -> str:
        return "Base::Of::Those"


def _kind(name: str, make, end=None) -> type:
    """A type that is made by ``make(client, properties, account)`` and taken away by ``end(client, name, account)``."""

    def delete(cls, resource_name, cloudformation_json, account_id, region_name):
        if end is not None:
            end(lambda service: boto3.client(service, region_name=region_name), resource_name, account_id)

    def create(cls, resource_name, cloudformation_json, account_id, region_name, **kwargs):
        def client(service: str) -> Any:
            return boto3.client(service, region_name=region_name)

        return make(client, cloudformation_json["Properties"], account_id)

    def update(cls, original_resource, new_resource_name, cloudformation_json, account_id, region_name):
        return original_resource

    return type(
        name.replace("::", ""),
        (_Made,),
        {
            "__module__": "moto.others",
            "cloudformation_type": staticmethod(lambda: name),
            "create_from_cloudformation_json": classmethod(create),
            "update_from_cloudformation_json": classmethod(update),
            "delete_from_cloudformation_json": classmethod(delete),
        },
    )


def _alarm(client, properties, account):
    numbers = {"Threshold": float, "Period": int, "EvaluationPeriods": int}
    client("cloudwatch").put_metric_alarm(
        **{key: numbers.get(key, lambda one: one)(value) for key, value in properties.items()}
    )
    return _Made(properties["AlarmName"])


def _topic_rule(client, properties, account):
    payload = camel(properties["TopicRulePayload"])
    client("iot").create_topic_rule(ruleName=properties["RuleName"], topicRulePayload=payload)
    return _Made(properties["RuleName"])


def _iot_policy(client, properties, account):
    client("iot").create_policy(
        policyName=properties["PolicyName"], policyDocument=json.dumps(properties["PolicyDocument"])
    )
    return _Made(properties["PolicyName"])


def _thing_type(client, properties, account):
    client("iot").create_thing_type(thingTypeName=properties["ThingTypeName"])
    return _Made(properties["ThingTypeName"])


def _job_template(client, properties, account):
    made = camel(properties)
    rollout = made["jobExecutionsRolloutConfig"].pop("exponentialRolloutRate")  # the API has another name for it
    made["jobExecutionsRolloutConfig"]["exponentialRate"] = rollout
    rollout["incrementFactor"] = float(rollout["incrementFactor"])
    abort = made["abortConfig"]["criteriaList"][0]
    abort["thresholdPercentage"] = float(abort["thresholdPercentage"])
    client("iot").create_job_template(**made)
    return _Made(properties["JobTemplateId"])


def _permission(client, properties, account):
    client("lambda").add_permission(StatementId="made-by-the-stack", **properties)
    return _Made("made-by-the-stack")


def _metric_filter(client, properties, account):
    made = camel(properties)
    for one in made["metricTransformations"]:
        one["defaultValue"] = float(one["defaultValue"])
    client("logs").put_metric_filter(filterName="refused", **made)
    return _Made("refused")


def _bucket_policy(client, properties, account):
    client("s3").put_bucket_policy(Bucket=properties["Bucket"], Policy=json.dumps(properties["PolicyDocument"]))
    return _Made(properties["Bucket"])


def _budget(client, properties, account):
    budget = dict(properties["Budget"])
    budget["BudgetLimit"] = {key: str(value) for key, value in budget["BudgetLimit"].items()}
    told = [
        {**one, "Notification": {**one["Notification"], "Threshold": float(one["Notification"]["Threshold"])}}
        for one in properties["NotificationsWithSubscribers"]
    ]
    client("budgets").create_budget(AccountId=account, Budget=budget, NotificationsWithSubscribers=told)
    return _Made(budget["BudgetName"])


def _glue_database(client, properties, account):
    client("glue").create_database(**properties)
    return _Made(properties["DatabaseInput"]["Name"])


def _glue_table(client, properties, account):
    client("glue").create_table(**properties)
    return _Made(properties["TableInput"]["Name"])


def _work_group(client, properties, account):
    configuration = dict(properties["WorkGroupConfiguration"])
    configuration["BytesScannedCutoffPerQuery"] = int(configuration["BytesScannedCutoffPerQuery"])
    client("athena").create_work_group(Name=properties["Name"], Configuration=configuration)
    return _Made(properties["Name"])


def _runtime(client, properties, account):
    made = camel(properties)
    made["protocolConfiguration"] = {"serverProtocol": made["protocolConfiguration"]}
    found = client("bedrock-agentcore-control").create_agent_runtime(**made)
    names = ("agentRuntimeArn", "agentRuntimeId", "agentRuntimeVersion")
    return _Made(found["agentRuntimeId"], {name[0].upper() + name[1:]: found[name] for name in names})


def _endpoint(client, properties, account):
    found = client("bedrock-agentcore-control").create_agent_runtime_endpoint(**camel(properties))
    return _Made(found["agentRuntimeEndpointArn"])


def _gateway(client, properties, account):
    found = client("bedrock-agentcore-control").create_gateway(**camel(properties))
    attributes = {
        "GatewayArn": found["gatewayArn"], "GatewayIdentifier": found["gatewayId"], "GatewayUrl": found["gatewayUrl"],
    }  # fmt: skip
    return _Made(found["gatewayId"], attributes)


def _target(client, properties, account):
    found = client("bedrock-agentcore-control").create_gateway_target(**camel(properties))
    return _Made(f"{properties['GatewayIdentifier']}|{found['targetId']}")


def _memory(client, properties, account):
    made = camel(properties)
    made["eventExpiryDuration"] = int(made["eventExpiryDuration"])
    found = client("bedrock-agentcore-control").create_memory(**made)["memory"]
    return _Made(found["id"], {"MemoryArn": found["arn"], "MemoryId": found["id"]})


KINDS = {
    one.cloudformation_type(): one
    for one in (
        _kind("AWS::CloudWatch::Alarm", _alarm),
        _kind("AWS::IoT::TopicRule", _topic_rule, lambda c, name, _: c("iot").delete_topic_rule(ruleName=name)),
        _kind("AWS::IoT::Policy", _iot_policy, lambda c, name, _: c("iot").delete_policy(policyName=name)),
        _kind("AWS::IoT::ThingType", _thing_type, lambda c, name, _: c("iot").delete_thing_type(thingTypeName=name)),
        _kind(
            "AWS::IoT::JobTemplate", _job_template, lambda c, name, _: c("iot").delete_job_template(jobTemplateId=name)
        ),
        _kind("AWS::Lambda::Permission", _permission),
        _kind("AWS::Logs::MetricFilter", _metric_filter),
        _kind("AWS::S3::BucketPolicy", _bucket_policy),
        _kind(
            "AWS::Budgets::Budget",
            _budget,
            lambda c, name, account: c("budgets").delete_budget(AccountId=account, BudgetName=name),
        ),
        _kind("AWS::Glue::Database", _glue_database),
        _kind("AWS::Glue::Table", _glue_table),
        _kind("AWS::Athena::WorkGroup", _work_group),
        _kind("AWS::BedrockAgentCore::Runtime", _runtime),
        _kind("AWS::BedrockAgentCore::RuntimeEndpoint", _endpoint),
        _kind("AWS::BedrockAgentCore::Gateway", _gateway),
        _kind("AWS::BedrockAgentCore::GatewayTarget", _target),
        _kind("AWS::BedrockAgentCore::Memory", _memory),
    )
}
