"""Settings of one deployment: read once by whoever composes a process, then passed on as a value.

There is deliberately no global settings object: several Ray processes on several machines would each have their own
copy of it, and they would differ without anybody noticing.
"""

import getpass
import json
import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cluster.approval_keys import read_approval_keys


def default_home() -> Path:
    """Directory that holds a local deployment's state: ``$PENSTOCK_HOME``, else below the user's state directory."""
    explicit = os.environ.get("PENSTOCK_HOME")
    if explicit:
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "penstock"


def default_user() -> str:
    """Who uses this process, as the operating system says."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user id that has no name
        return f"uid-{os.getuid()}"


class Retention(BaseModel):
    """How long ended runs stay readable, in seconds, by terminal state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    succeeded_s: float = Field(default=7 * 86400, gt=0)
    failed_s: float = Field(default=30 * 86400, gt=0)
    cancelled_s: float = Field(default=7 * 86400, gt=0)
    shed_s: float = Field(default=7 * 86400, gt=0)
    effects_s: float = Field(default=90 * 86400, gt=0, description="receipts, by which an effect is known again")

    def milliseconds_of(self, state: str) -> int:
        """Retention of a terminal ``state`` in milliseconds; the longest one for any other state."""
        seconds = getattr(self, f"{state}_s", None)
        if seconds is None:
            seconds = max(self.succeeded_s, self.failed_s, self.cancelled_s, self.shed_s)
        return int(seconds * 1000)

    @property
    def argument(self) -> str:
        """What every script is given: milliseconds for succeeded, failed, cancelled and shed."""
        return ",".join(str(self.milliseconds_of(state)) for state in ("succeeded", "failed", "cancelled", "shed"))


class Settings(BaseSettings):
    """What a process must know of its deployment. Environment variables: ``PENSTOCK_`` + field name.

    Durations are in seconds, sizes in bytes. ``partitions`` is fixed for the life of a deployment: the store
    remembers it and a process that comes with another number is refused.
    """

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_", extra="ignore", frozen=True)

    name: str = Field(default="penstock", pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    redis_url: SecretStr | None = None
    home: Path = Field(default_factory=default_home)
    partitions: int = Field(default=8, ge=1, le=256)
    lease_s: float = Field(default=3.0, gt=0.2)
    heartbeat_s: float = Field(default=1.0, gt=0.05)
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="where a local deployment serves its metrics; 0 for any free port"
    )
    slots_per_host: int = Field(default=2000, ge=1)
    payload_limit_bytes: int = Field(default=256 * 1024, ge=1024)
    store_timeout_s: float = Field(default=10.0, gt=0)
    store_replicas: int = Field(default=0, ge=0, description="replicas that must have a write before it counts (WAIT)")
    max_losses: int = Field(default=10, ge=1, description="hosts that may die under one run before it is given up")
    loop_block_warn_s: float = Field(default=1.0, gt=0)
    loop_block_limit_s: float = Field(default=10.0, gt=0)
    watch_address: str = Field(default="127.0.0.1", description="where hosts listen for each other's liveness")
    user: str = Field(
        default_factory=default_user, min_length=1, max_length=256, description="who submits jobs and decides approvals"
    )
    approval_keys: SecretStr | None = Field(
        default=None, description="keys of approvals as id:base64,id2:base64; the first signs, all of them verify"
    )
    retention: Retention = Retention()
    dependencies: Path | None = Field(default=None, description="the operators' YAML file of dependencies")
    dependencies_yaml: str = Field(default="", description="its content, for processes that have no such file")
    policy: Path | None = Field(default=None, description="the operators' YAML file with the policy")
    policy_yaml: str = Field(default="", description="its content, for processes that have no such file")
    admission: Path | None = Field(default=None, description="the operators' YAML file with rules for admission")
    admission_yaml: str = Field(default="", description="its content, for processes that have no such file")

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Settings from arguments, then the environment, then the running local deployment's file.

        The deployment file is only asked for what neither arguments nor environment say, so that a plain
        ``penstock status`` finds the deployment that ``penstock up`` started. It says nothing of another store than
        its own.

        Raises:
            ValueError: a value is not valid, or the deployment file is no JSON.
        """
        settings = cls(**overrides)
        recorded = read_deployment(settings.home)
        if recorded is None:
            return settings
        said = settings.model_fields_set
        if settings.redis_url is not None and settings.redis_url.get_secret_value() != recorded.get("redis_url"):
            return settings
        fill: dict[str, Any] = {
            field: recorded[field]
            for field in ("redis_url", "name", "partitions")
            if field in recorded and field not in said and recorded[field] is not None
        }
        if settings.approval_keys is None and (keys := read_approval_keys(settings.home)) is not None:
            fill["approval_keys"] = SecretStr(keys)
        return cls(**(overrides | fill)) if fill else settings


def deployment_file(home: Path) -> Path:
    """Where ``penstock up`` writes what it started."""
    return home / "deployment.json"


def read_deployment(home: Path) -> dict[str, Any] | None:
    """The local deployment's record, or None where none is running.

    Raises:
        ValueError: the file is there and is no JSON.
    """
    try:
        recorded: dict[str, Any] = json.loads(deployment_file(home).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return recorded
