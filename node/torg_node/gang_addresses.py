"""Where the members of a gang find each other: an address by rank on the network that gang_network makes, and what containers are told of it."""

from __future__ import annotations

from ipaddress import IPv4Interface

from torg_protocol.ids import JobId
from torg_protocol.jobspec import Gang

NETWORK = IPv4Interface("10.88.0.0/24")
MASTER_PORT = 29_500  # as torchrun's
_LAST_CALL_S = 10  # that torchrun waits for more members when enough are there


def address_of(rank: int) -> IPv4Interface:
    return IPv4Interface((int(NETWORK.ip) + 1 + rank, NETWORK.network.prefixlen))


def gang_env(rank: int, gang: Gang, job_id: JobId) -> dict[str, str]:
    """What torch, gloo, NCCL and torchrun look for, so that their defaults find the other members."""
    size = gang.size
    master, own, port = str(address_of(0).ip), str(address_of(rank).ip), str(MASTER_PORT)
    if gang.min_size is None:
        meeting = {
            "PET_NNODES": str(size),
            "PET_NODE_RANK": str(rank),
            "PET_MASTER_ADDR": master,
            "PET_MASTER_PORT": port,
        }
    else:
        meeting = _elastic_env(rank, gang.min_size, size, job_id)
    return {
        "TORG_RANK": str(rank),
        "TORG_WORLD_SIZE": str(size),
        "TORG_GANG_ADDRESS": own,
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": master,
        "MASTER_PORT": port,
        **{f"{library}_SOCKET_IFNAME": "torg0" for library in ("GLOO", "NCCL", "TP")},
        "PET_LOCAL_ADDR": own,
        **meeting,
    }


def _elastic_env(rank: int, min_size: int, size: int, job_id: JobId) -> dict[str, str]:
    """Makes `torchrun train.py` meet at rank 0, which counts who is there, and again when somebody is lost."""
    settings = f"is_host={int(rank == 0)},last_call_timeout={_LAST_CALL_S}"
    return {
        "TORG_MIN_WORLD_SIZE": str(min_size),
        "PET_NNODES": f"{min_size}:{size}",
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": f"{address_of(0).ip}:{MASTER_PORT}",
        "PET_RDZV_ID": job_id,
        "PET_RDZV_CONF": settings,
        # Else workers of one round look for those of an earlier one: torchrun's members count their restarts each for itself.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "PET_MAX_RESTARTS": str(size - min_size + 1),  # each loss is one; and one to spare
    }
