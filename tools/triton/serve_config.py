"""How a pair is served; what the repository's parameters hold."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from engine.config import ExitConfig, GuidanceConfig, SamplingConfig, ServingConfig
from engine.errors import RequestError


@dataclass(frozen=True)
class Instances:
    """How many processes run a model, and where.

    gpus: ids, `count` processes on each, or of a model of several ranks, on each `ranks` of them; none is the CPU.
    """

    count: int = 1
    gpus: tuple[int, ...] = ()
    ranks: int = 1

    def placed(self) -> tuple[int, ...]:
        """The GPUs that the server is told of: of several ranks, that of rank 0."""
        return self.gpus[:: self.ranks]


@dataclass(frozen=True)
class ServeConfig:
    """None stands for what the engine directory says."""

    max_batch: int | None = None
    queue_delay_us: int = 2000
    """How long a request waits for others to share its batch."""
    small_instances: int = 1
    large_instances: int = 1
    small_gpus: tuple[int, ...] = ()
    """Where instances are placed, `small_instances` on each GPU; none is the CPU, and of plans the first GPU."""
    large_gpus: tuple[int, ...] = ()
    """Of a large model of several ranks, `large_instances` on each so many of them."""
    threads: int | None = None
    """Of each model instance; None takes the cores that it may use."""
    max_in_flight: int = 128
    """Questions that `sgl` works on at once; more are refused."""
    feature_cache: int = ServingConfig.feature_cache
    """Bytes of visual features that each model instance keeps; 0 keeps none."""
    max_tokens: int = SamplingConfig.max_new_tokens
    retention_ratio: float | None = None
    prune_layer: int | None = None
    exit_threshold: float | None = None
    allow_image_urls: bool = False
    """Fetch http(s) pictures, from public addresses only."""
    warm_up: bool = True
    """Answer a question before the model counts as ready."""
    environment: Path | None = None
    """Python environment of the models: a directory or archive for EXECUTION_ENV_PATH; None is the server's own."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "small_instances", "large_instances", "threads", "max_in_flight", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RequestError(f"{name} {value} is below 1")
        for name in ("small_gpus", "large_gpus"):
            gpus = getattr(self, name)
            if any(gpu < 0 for gpu in gpus):
                raise RequestError(f"{name} {gpus} names a negative id; GPUs count from 0")
            if len(set(gpus)) < len(gpus):
                raise RequestError(
                    f"{name} {gpus} names a GPU twice; --{name[:5]}-instances 2 puts two processes on each"
                )
        if self.queue_delay_us < 0:
            raise RequestError(f"queue_delay_us {self.queue_delay_us} is negative; 0 never waits")

    def guidance(self, default: GuidanceConfig) -> GuidanceConfig:
        """Of requests that name none. Raises RequestError."""
        return with_pruning(default, self.retention_ratio, self.prune_layer)

    def exit(self, default: ExitConfig) -> ExitConfig:
        return with_threshold(default, self.exit_threshold)

    def instances(self, model: str, ranks: int) -> Instances:
        """Of a served model; ranks: that share the large one. The cascade itself only passes questions on."""
        match model:
            case "small_vlm":
                return Instances(self.small_instances, self.small_gpus)
            case "large_vlm":
                return Instances(self.large_instances, self.large_gpus, ranks)
        return Instances()

    def parameters(self) -> dict[str, str]:
        """As the text parameters of a served model."""
        return {name: str(value) for name in RUNTIME if (value := getattr(self, name)) is not None}

    @classmethod
    def from_parameters(cls, parameters: dict[str, str]) -> "ServeConfig":
        """The inverse; parameters that are not ours are Triton's."""
        values: dict[str, Any] = {}
        for name in RUNTIME & parameters.keys():
            text, kind = parameters[name], KINDS[name]
            values[name] = text == "True" if kind == "bool" else (float(text) if "float" in kind else int(text))
        return cls(**values)


KINDS = {field.name: str(getattr(field.type, "__name__", field.type)) for field in fields(ServeConfig)}
PLACEMENT = {"small_instances", "large_instances", "small_gpus", "large_gpus"}
SERVER = PLACEMENT | {"max_batch", "queue_delay_us", "environment"}
"""What is in the server's own configuration."""
RUNTIME = KINDS.keys() - SERVER
"""What the adapters read."""


def with_pruning(default: GuidanceConfig, retention_ratio: float | None, prune_layer: int | None) -> GuidanceConfig:
    """What was asked for, over a default; naming either turns guidance on. Raises RequestError."""
    wanted = {"retention_ratio": retention_ratio, "prune_layer": prune_layer}
    given: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    return replace(default, enabled=True, average_retention=None, **given) if given else default


def with_threshold(default: ExitConfig, exit_threshold: float | None) -> ExitConfig:
    """The default with another threshold, which turns early exit on."""
    return default if exit_threshold is None else replace(default, enabled=True, exit_threshold=exit_threshold)
