"""OpenAI-compatible endpoints over the replicas of a service. The room is here; nothing is in it yet."""
