"""What a gateway may do at a broker, said once: AWS IoT Core's policy and mosquitto's access list are both made from it.

A gateway is the thing named as its site; its client id is ``ORG/SITE/gateway``. It may speak in its own name only, hear what is
for it and what is for everybody, and send telemetry by one named rule. Retained are cards alone.
"""

from __future__ import annotations

from typing import Any

THING = "${iot:Connection.Thing.ThingName}"
_AGENT = "gateway"


def publishes(org: str, site: str) -> list[str]:
    """Topics that a gateway may publish to; ``*`` for any level or levels."""
    me = f"{org}/{site}/{_AGENT}"
    return [
        f"a2a/v1/discovery/{me}",
        f"a2a/v1/event/{me}",
        f"a2a/v1/request/{org}/cloud/*",
        f"a2a/v1/reply/{org}/cloud/*",
    ]


_AWS_THINGS, _OWN_THINGS = "$aws/things", "wattmesh/v1/things"
"""Where shadow and jobs are: on AWS, and on a broker of one's own (``messaging.things`` in the site file)."""


def tells_of_changes(things: str, site: str) -> list[str]:
    """Topics by which a gateway tells of its configuration (the named shadow alone) and its jobs."""
    me = f"{things}/{site}"
    return [
        f"{me}/shadow/name/config/update",
        f"{me}/shadow/name/config/get",
        f"{me}/jobs/$next/get",
        f"{me}/jobs/*/update",
    ]


def hears_of_changes(things: str, site: str) -> list[str]:
    """Topics by which a gateway is told what is wanted; each by its whole name."""
    me = f"{things}/{site}"
    return [
        f"{me}/shadow/name/config/update/delta",
        f"{me}/shadow/name/config/get/accepted",
        f"{me}/jobs/notify-next",
        f"{me}/jobs/$next/get/accepted",
    ]


def telemetry(org: str, site: str) -> str:
    """The topic of a gateway's batches, without a rule in front."""
    return f"wattmesh/v1/telemetry/{org}/{site}/*"


def subscribes(org: str, site: str) -> list[str]:
    """Topic filters that a gateway may subscribe to; ``*`` for any agent's name."""
    me = f"{org}/{site}/{_AGENT}"
    return [
        f"a2a/v1/request/{me}",
        f"a2a/v1/reply/{me}/+",
        f"a2a/v1/discovery/{me}",
        f"a2a/v1/event/{org}/cloud/*",
    ]


def receives(org: str, site: str) -> list[str]:
    """Topics from which a gateway may get messages; ``*`` for any level or levels."""
    me = f"{org}/{site}/{_AGENT}"
    return [
        f"a2a/v1/request/{me}",
        f"a2a/v1/reply/{me}/*",
        f"a2a/v1/discovery/{me}",
        f"a2a/v1/event/{org}/cloud/*",
    ]


def iot_policy(org: str, region: str, account: str, rule: str) -> dict[str, Any]:
    """AWS IoT Core's policy of all gateways; ``rule`` takes their telemetry by Basic Ingest."""
    arn = f"arn:aws:iot:{region}:{account}"

    def topics(names: list[str], kind: str = "topic") -> list[str]:
        return [f"{arn}:{kind}/{name}" for name in names]

    attached = {"Bool": {"iot:Connection.Thing.IsAttached": "true"}}
    return {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "ConnectAsItself",
                "Effect": "Allow",
                "Action": "iot:Connect",
                "Resource": f"{arn}:client/{org}/{THING}/{_AGENT}",
                "Condition": attached,
            },
            {
                "Sid": "PublishInItsOwnName",
                "Effect": "Allow",
                "Action": "iot:Publish",
                "Resource": topics(
                    [
                        *publishes(org, THING),
                        f"$aws/rules/{rule}/{telemetry(org, THING)}",
                        *tells_of_changes(_AWS_THINGS, THING),
                    ]
                ),
                "Condition": attached,
            },
            {
                "Sid": "RetainItsCardOnly",
                "Effect": "Allow",
                "Action": "iot:RetainPublish",
                "Resource": topics([f"a2a/v1/discovery/{org}/{THING}/{_AGENT}"]),
                "Condition": attached,
            },
            {
                "Sid": "SubscribeToItsOwn",
                "Effect": "Allow",
                "Action": "iot:Subscribe",
                "Resource": topics([*subscribes(org, THING), *hears_of_changes(_AWS_THINGS, THING)], "topicfilter"),
                "Condition": attached,
            },
            {
                "Sid": "ReceiveItsOwn",
                "Effect": "Allow",
                "Action": "iot:Receive",
                "Resource": topics([*receives(org, THING), *hears_of_changes(_AWS_THINGS, THING)]),
                "Condition": attached,
            },
        ],
    }


def mosquitto_acl(org: str) -> str:
    """Mosquitto's access list for a self-hosted broker: gateways by ``%u``, the certificate's common name, and the cloud.

    mosquitto knows no ``*`` over part of a filter: a trailing ``/*`` becomes ``/#``. It does not check client ids against the
    name; ``use_identity_as_username true`` and one name a certificate are what stands for that.
    """

    def filters(names: list[str]) -> list[str]:
        return [name[:-1] + "#" if name.endswith("/*") else name for name in names]

    lines = [
        "# Made by wattmesh_cloud.aws.gateway_policy; change it there.",
        "# Every gateway, by its certificate's name",
    ]
    lines += [f"pattern write {name}" for name in filters([*publishes(org, "%u"), telemetry(org, "%u")])]
    lines += [f"pattern read {name}" for name in filters(receives(org, "%u"))]
    lines += [f"pattern write {name.replace('*', '+')}" for name in tells_of_changes(_OWN_THINGS, "%u")]
    lines += [f"pattern read {name}" for name in hears_of_changes(_OWN_THINGS, "%u")]
    lines += ["", "user cloud", f"topic readwrite a2a/v1/+/{org}/#", f"topic read wattmesh/v1/telemetry/{org}/#"]
    lines += [f"topic readwrite {_OWN_THINGS}/#"]
    return "\n".join(lines) + "\n"
