"""A language model as the cloud's file asks for it; the only place that knows which package it needs."""

from __future__ import annotations

from wattmesh_a2a.errors import ConfigurationError

from wattmesh_cloud.agents.config import AgentsConfig, ModelConfig
from wattmesh_cloud.agents.contract import Reasoner
from wattmesh_cloud.agents.memory import Memory
from wattmesh_cloud.agents.toolbox import Toolbox


def remote_memory(config: AgentsConfig) -> Memory | None:
    """The AgentCore memory that the file names; none where it names none.

    Raises:
        ConfigurationError: boto3 is not installed.
    """
    if config.memory_id is None:
        return None
    try:
        import boto3
    except ModuleNotFoundError as error:
        raise ConfigurationError("agents.memory_id needs the extra: pip install 'wattmesh[agentcore]'") from error
    from wattmesh_cloud.agents.agentcore import MEMORY_S, AgentCoreMemory, quick

    region = config.model.region if config.model is not None else None
    client = boto3.client("bedrock-agentcore", region_name=region, config=quick(MEMORY_S))
    return AgentCoreMemory(config.memory_id, client)


def reasoner(config: ModelConfig | None, toolbox: Toolbox) -> Reasoner | None:
    """A model behind the contract; none where none is asked for, and then nothing of it is imported.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    if config is None:
        return None
    if config.provider == "agentcore":
        from wattmesh_cloud.agents.agentcore import AgentCoreReasoner

        return AgentCoreReasoner(config.runtimes, config.region, config.deadline_s)
    try:
        from wattmesh_cloud.agents.strands_reasoner import StrandsReasoner
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("strands", "boto3", "botocore"):
            raise  # anything else that is missing is a fault of ours and has to be seen
        raise ConfigurationError("agents.model needs the extra: pip install 'wattmesh[bedrock]'") from error
    return StrandsReasoner(config, toolbox)
