"""What is checked of Redis' settings, at the start and while the engine serves."""

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from engine.errors import SettingsError


async def check_configuration(redis: Redis) -> str:
    """Raise SettingsError for a Redis that may evict gate data.

    Returns a warning of one that may forget an accepted purchase, or that can't be checked; nothing if all is
    well. Raises RedisError.
    """
    try:
        config = {
            name: value.decode() if isinstance(value, bytes) else value
            for name in ("maxmemory-policy", "appendonly", "appendfsync")
            for value in (await redis.config_get(name)).values()
        }
        refusal = "" if len(config) == 3 else "it shows none"
    except ResponseError as error:
        config, refusal = {}, str(error)
    if config.get("maxmemory-policy", "noeviction") != "noeviction":
        raise SettingsError(
            "Redis may evict gate data: its maxmemory-policy must be noeviction,"
            f" and is {config['maxmemory-policy']}"
        )
    if refusal:
        return (
            f"can't read Redis' settings ({refusal}): make sure that maxmemory-policy is noeviction,"
            " appendonly yes and appendfsync always"
        )
    if config["appendonly"] != "yes" or config["appendfsync"] != "always":
        return (
            "Redis may lose accepted purchases if it dies: set appendonly to yes"
            f" (is {config['appendonly']}), appendfsync to always (is {config['appendfsync']})"
        )
    return ""
