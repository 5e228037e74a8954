"""A2A over HTTP, by the official SDK: any A2A client can talk to an agent of the fleet, within its role.

Gateways speak MQTT alone; this bridge speaks HTTP for them. Tasks, streams, push notifications and cards live here.
"""
