"""``wattmesh aws`` on moto: planned, confirmed, made, and every resource then found through its own service."""

import io
import json
import warnings

import pytest
from wattmesh_a2a.clock import SystemClock
from wattmesh_a2a.errors import ConfigurationError
from wattmesh_cloud.aws.deployment import load_deployment, parsed, stacks, template_text
from wattmesh_cloud.store.base import Table

moto = pytest.importorskip("moto")
boto3 = pytest.importorskip("boto3")

from cloudformation_types import KINDS  # noqa: E402 - it needs moto
from moto.cloudformation import parsing  # noqa: E402
from wattmesh_cloud.aws import cli  # noqa: E402
from wattmesh_cloud.aws.deploy import Deployment, session_clients  # noqa: E402
from wattmesh_cloud.aws.inventory import TYPES  # noqa: E402

HOME, AWAY = "eu-central-1", "eu-west-1"
LAYER = "arn:aws:lambda:{}:111122223333:layer:AWSSDKPandas-Python313-Arm64:1"
FILE = f"""\
version: 1
environment: test
region: {HOME}
org: acme
area: area-1
alarm_email: a@example.com
code: {{bucket: code, key: code.zip}}
arrow_layer: "{LAYER.format(HOME)}"
sites: 100
"""
MORE = f"""\
agents: {{code: {{bucket: code, key: code.zip}}}}
standby: {{region: {AWAY}, code: {{bucket: code-west, key: code.zip}}, arrow_layer: "{LAYER.format(AWAY)}"}}
"""
# moto has no such call; its properties are checked against the service's model below.
NOWHERE = {"Provisioning"}


@pytest.fixture
def account(monkeypatch):
    """An empty account with the code's buckets; gives clients by (service, region)."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for kind, model in KINDS.items():
        monkeypatch.setitem(parsing.get_model_map(), kind, model)
        monkeypatch.setitem(parsing.get_name_type_map(), kind, "")
    with moto.mock_aws(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clients = session_clients()
        for region, bucket in ((HOME, "code"), (AWAY, "code-west")):
            where = {"LocationConstraint": region}
            clients("s3", region).create_bucket(Bucket=bucket, CreateBucketConfiguration=where)
            clients("s3", region).put_object(Bucket=bucket, Key="code.zip", Body=b"PK\x05\x06" + bytes(18))
        yield clients


@pytest.fixture
def make(tmp_path, account):
    def build(text=FILE):
        (tmp_path / "deployment.yaml").write_text(text)
        model = load_deployment(tmp_path / "deployment.yaml")
        return Deployment(model, SystemClock(), account, pause=lambda seconds: None), model

    return build


def test_everything_is_made_and_found_by_its_own_service(make, account):
    deployment, _ = make(FILE + MORE)
    planned = deployment.plan()
    assert {one.action for one in planned} == {"Add"}
    assert len(planned) > 120
    assert [one["StackName"] for one in account("cloudformation", HOME).describe_stacks()["Stacks"]] == []
    said = []
    deployment.deploy(said.append)
    states, resources = deployment.status()
    assert {state for _, state in states} == {"CREATE_COMPLETE"}
    assert len(states) == 5
    missing = {one.name for one in resources if one.found is not True}
    assert missing == NOWHERE
    assert {(one.stack, one.region, one.name) for one in planned} == {
        (one.stack, one.region, one.name) for one in resources
    }
    # Again: nothing is left to do.
    assert deployment.plan() == []
    said.clear()
    deployment.deploy(said.append)
    assert [line for line in said if not line.endswith("as it should be") and "copied" not in line] == []


def test_the_tables_are_copied_once(make, account, monkeypatch):
    """moto knows no replicas: what the calls would make of them is noted here, and held to the service's model."""
    from botocore.validate import ParamValidator

    deployment, _ = make(FILE + MORE)
    real, copies = account("dynamodb", HOME), {}
    shape = real.meta.service_model.operation_model("UpdateTable").input_shape

    class Tables:
        def describe_table(self, TableName):
            answer = real.describe_table(TableName=TableName)
            answer["Table"]["Replicas"] = [{"RegionName": region} for region in copies.get(TableName, ())]
            return answer

        def update_table(self, **call):
            assert ParamValidator().validate(call, shape).generate_report() == ""
            ((kind, update),) = call["ReplicaUpdates"][0].items()
            assert kind == "Create"
            assert update["KMSMasterKeyId"].startswith(f"arn:aws:kms:{AWAY}:")
            copies.setdefault(call["TableName"], []).append(update["RegionName"])

    clients = lambda service, region: Tables() if (service, region) == ("dynamodb", HOME) else account(service, region)  # noqa: E731
    monkeypatch.setattr(deployment, "_clients", clients)
    for _ in range(2):
        deployment.deploy(lambda line: None)
    assert copies == {f"wattmesh-test-{table}": [AWAY] for table in Table}


def test_the_provisioning_template_is_one_by_the_services_model(account):
    from botocore.validate import ParamValidator

    properties = parsed(template_text("services"))["Resources"]["Provisioning"]["Properties"]
    body = properties["TemplateBody"]["Fn::Sub"].replace("${ThingType}", "t").replace("${GatewayPolicy}", "p")
    assert json.loads(body)["Resources"]["policy"]["Properties"] == {"PolicyName": "p"}
    shape = account("iot", HOME).meta.service_model.operation_model("CreateProvisioningTemplate").input_shape
    call = {
        "templateName": "wattmesh-test", "description": properties["Description"], "templateBody": body,
        "enabled": properties["Enabled"], "provisioningRoleArn": "arn:aws:iam::111122223333:role/x-role-name",
    }  # fmt: skip
    assert ParamValidator().validate(call, shape).generate_report() == ""


def test_what_is_made_is_what_the_services_say(make, account):
    deployment, _ = make()
    deployment.deploy(lambda line: None)
    tables = account("dynamodb", HOME).list_tables()["TableNames"]
    assert sorted(tables) == sorted(f"wattmesh-test-{table}" for table in Table)
    for name in tables:
        table = account("dynamodb", HOME).describe_table(TableName=name)["Table"]
        assert table["StreamSpecification"]["StreamViewType"] == "NEW_AND_OLD_IMAGES"
        assert table["DeletionProtectionEnabled"] is True
    (bucket,) = [one["Name"] for one in account("s3", HOME).list_buckets()["Buckets"] if "lake" in one["Name"]]
    assert account("s3", HOME).get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    functions = account("lambda", HOME).list_functions()["Functions"]
    assert len(functions) == 7
    rule = account("iot", HOME).get_topic_rule(ruleName="wattmesh_test")["rule"]
    assert "sqs" in rule["errorAction"]
    alarms = account("cloudwatch", HOME).describe_alarms()["MetricAlarms"]
    assert len(alarms) == 7
    groups = account("logs", HOME).describe_log_groups()["logGroups"]
    assert {one["retentionInDays"] for one in groups} == {90}
    tags = account("cloudformation", HOME).describe_stacks(StackName="wattmesh-test-data")["Stacks"][0]["Tags"]
    assert {one["Key"]: one["Value"] for one in tags}["wattmesh:environment"] == "test"


def test_what_is_missing_is_told(make, account, capsys):
    deployment, _ = make()
    deployment.deploy(lambda line: None)
    account("sns", HOME).delete_topic(TopicArn=account("sns", HOME).list_topics()["Topics"][0]["TopicArn"])
    account("cloudwatch", HOME).delete_alarms(AlarmNames=["wattmesh-test-Backlog"])
    capsys.readouterr()
    assert cli.told(deployment) == 1
    told = capsys.readouterr().out
    assert "MISSING: AlarmTopic AWS::SNS::Topic" in told
    assert "MISSING: BacklogAlarm" in told
    assert "MISSING: ThrottlesAlarm" not in told


def test_a_change_is_planned_before_it_is_made(make, account, monkeypatch):
    deployment, _ = make()
    deployment.deploy(lambda line: None)
    newer = template_text("services").replace("VisibilityTimeout: 60", "VisibilityTimeout: 90")
    monkeypatch.setattr(
        "wattmesh_cloud.aws.deploy.template_text", lambda part: newer if part == "services" else template_text(part)
    )

    def sets():
        held = account("cloudformation", HOME).list_change_sets(StackName="wattmesh-test-services")["Summaries"]
        return {one["ChangeSetId"] for one in held if one["StackName"] == "wattmesh-test-services"}

    before = sets()
    planned = deployment.plan()
    assert [(one.stack, one.name, one.action) for one in planned] == [
        ("wattmesh-test-services", "ActionQueue", "Modify")
    ]
    url = account("sqs", HOME).get_queue_url(QueueName="wattmesh-test-actions.fifo")["QueueUrl"]

    def timeout():
        answer = account("sqs", HOME).get_queue_attributes(QueueUrl=url, AttributeNames=["VisibilityTimeout"])
        return answer["Attributes"]["VisibilityTimeout"]

    assert timeout() == "60", "a plan changes nothing"
    assert sets() == before
    deployment.deploy(lambda line: None)
    assert timeout() == "90"


def test_destroy_keeps_data_unless_told(make, account):
    deployment, _ = make(FILE + MORE)
    deployment.deploy(lambda line: None)
    (bucket,) = [
        one["Name"] for one in account("s3", HOME).list_buckets()["Buckets"] if one["Name"].endswith(f"-{HOME}")
    ]
    account("s3", HOME).delete_bucket_policy(Bucket=bucket)  # moto refuses all, whatever its condition says
    account("s3", HOME).put_object(Bucket=bucket, Key="samples/x", Body=b"1")
    account("s3", HOME).put_object(Bucket=bucket, Key="samples/x", Body=b"2")
    said = []
    deployment.destroy(said.append)
    assert sum("kept" in line for line in said) == 2
    assert len(account("dynamodb", HOME).list_tables()["TableNames"]) == 7
    assert account("lambda", HOME).list_functions()["Functions"] == []
    assert account("lambda", AWAY).list_functions()["Functions"] == []
    assert account("s3", HOME).get_object(Bucket=bucket, Key="samples/x")["Body"].read() == b"2"
    # Deployed again over what was kept, then taken down with all of it.
    deployment.deploy(lambda line: None)
    deployment.destroy(said.append, with_data=True)
    assert account("dynamodb", HOME).list_tables()["TableNames"] == []
    assert [one["Name"] for one in account("s3", HOME).list_buckets()["Buckets"]] == ["code", "code-west"]
    assert account("logs", HOME).describe_log_groups()["logGroups"] == []
    assert deployment.status()[1] == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("answer", "done"), [("test\n", True), ("yes\n", False), ("\n", False)], ids=["its-name", "yes", "nothing"]
)
def test_nothing_is_done_without_the_environments_name(make, account, monkeypatch, capsys, answer, done):
    deployment, model = make()
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    cli.deployed(deployment, model, yes=False)
    told = capsys.readouterr().out
    assert "Plan for test in eu-central-1" in told
    assert "US dollars a month" in told
    assert bool(account("dynamodb", HOME).list_tables()["TableNames"]) == done
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert cli.destroyed(deployment, model, yes=True, with_data=True) == 1, "its data never by --yes alone"


def test_the_sites_keys_are_encrypted_parameters_that_the_function_signs_with(make, account):
    from wattmesh_a2a.envelope import Address
    from wattmesh_a2a.signing import KeyRing
    from wattmesh_cloud.tools.lambdas import ParameterKeys

    deployment, _ = make(FILE + MORE)
    deployment.deploy(lambda line: None)
    deployment.put_keys({"home-1": "ab" * 32, "home-2": "cd" * 32})
    for region in (HOME, AWAY):
        found = account("ssm", region).get_parameter(Name="/wattmesh/test/keys/home-1")["Parameter"]
        assert found["Type"] == "SecureString"
        keys = ParameterKeys("/wattmesh/test/keys/", account("ssm", region))
        here, there = Address("acme", "cloud", "ingest"), Address("acme", "home-1", "gateway")
        signature = keys.sign(here, there, b"content")
        assert KeyRing({"home-1": bytes.fromhex("ab" * 32)}).verify(here, there, b"content", signature)
        assert keys.sign(here, Address("acme", "home-9", "gateway"), b"content") is None


def test_every_type_of_the_templates_can_be_looked_for():
    used = {
        one["Type"]
        for part in ("data", "services", "agents", "standby")
        for one in parsed(template_text(part))["Resources"].values()
    }
    assert used == TYPES


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (f"region: {HOME}", "region: nowhere", "region"),
        ("environment: test", "environment: Test!", "environment"),
        ("sites: 100", "sites: 0", "sites"),
        ("sites: 100", "sitez: 1", "sitez"),
        ("version: 1", "version: 2", "version"),
        ("alarm_email: a@example.com", "alarm_email: nobody", "alarm_email"),
        (FILE, FILE + MORE.replace(f"region: {AWAY}", f"region: {HOME}"), "standby"),
    ],
    ids=["region", "environment", "sites", "unknown", "version", "email", "same-region"],
)
def test_a_wrong_file_is_refused_with_its_place(tmp_path, old, new, says):
    (tmp_path / "d.yaml").write_text(FILE.replace(old, new))
    with pytest.raises(ConfigurationError, match=says):
        load_deployment(tmp_path / "d.yaml")


def test_a_deployment_refused_by_aws_says_why(make, account):
    deployment, model = make()
    account("iot", HOME).create_topic_rule(
        ruleName="wattmesh_test", topicRulePayload={"sql": "SELECT 1", "actions": [], "errorAction": {}}
    )
    with pytest.raises(ConfigurationError, match=r"wattmesh-test-services in eu-central-1.*Rule with given name"):
        deployment.deploy(lambda line: None)
    assert [one.part for one in stacks(model)] == ["data", "services"]


class Runtimes:
    """In the place of the account's CloudFormation and AgentCore."""

    def __init__(self, outputs, answer=b'{"outcome": "answered"}'):
        self.outputs, self.answer, self.asked = outputs, answer, []

    def __call__(self, service, region):
        assert region == HOME
        return self

    def describe_stacks(self, StackName):
        outputs = [{"OutputKey": key, "OutputValue": value} for key, value in self.outputs.items()]
        return {"Stacks": [{"StackStatus": "CREATE_COMPLETE", "StackName": StackName, "Outputs": outputs}]}

    def invoke_agent_runtime(self, **arguments):
        self.asked.append(arguments)
        return {"response": io.BytesIO(self.answer)}


def invoked(tmp_path, runtimes, text=FILE + MORE):
    path = tmp_path / "deployment.yaml"
    path.write_text(text)
    deployment = Deployment(load_deployment(path), SystemClock(), runtimes)
    return deployment.invoke("market-supervisor", {"task": 1})


def test_an_agents_runtime_is_invoked_by_its_name(tmp_path):
    runtimes = Runtimes({"MarketSupervisorRuntime": "arn:of:it", "GatewayUrl": "https://gateway"})
    assert invoked(tmp_path, runtimes) == {"outcome": "answered"}
    (asked,) = runtimes.asked
    assert (asked["agentRuntimeArn"], asked["qualifier"]) == ("arn:of:it", "prod")
    assert json.loads(asked["payload"]) == {"task": 1}
    assert len(asked["runtimeSessionId"]) >= 33, "AgentCore takes no shorter one"


def test_an_agent_that_is_not_deployed_is_no_riddle(tmp_path):
    with pytest.raises(ConfigurationError, match="no runtime of market-supervisor; it has ProducerRuntime"):
        invoked(tmp_path, Runtimes({"ProducerRuntime": "arn"}))
    with pytest.raises(ConfigurationError, match="has no agents deployed"):
        invoked(tmp_path, Runtimes({}), FILE)


def test_invoke_wants_a_json_object(tmp_path):
    path = tmp_path / "payload.json"
    path.write_text("[1]")
    with pytest.raises(ConfigurationError, match="holds no JSON object"):
        cli.payload_of(path)
    with pytest.raises(ConfigurationError, match=r"absent\.json"):
        cli.payload_of(tmp_path / "absent.json")
