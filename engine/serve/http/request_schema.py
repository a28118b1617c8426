"""Requests of the chat completions API, as OpenAI publishes them; what is ours is under `sgl`.

A member that is null counts as absent, one that is unknown is refused, as OpenAI's server does.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

MOST_MESSAGES = 1000
MOST_PARTS = 1000
"""Of a message."""
MOST_STOPS = 16
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "store": (False,),
    "prediction": (),
    "audio": (),
    "web_search_options": (),
}
"""Members of requests that are served only where they change nothing -> the values that do not."""
TYPED = "leave it out, and say what form the answer has by response_format, a json_schema"
REMEDIES = dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), TYPED)
"""Of those, where leaving it out is not all that helps."""
IGNORED = (
    "user",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "verbosity",
)
"""Members that no answer depends on."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_null(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: member for name, member in value.items() if member is not None}


class TextPart(Model):
    type: Literal["text"]
    text: str


class ImageUrl(Model):
    url: str
    detail: Literal["auto", "low", "high", "original"] = "auto"
    """Not looked at: how a picture is cut up is its model's."""


class ImagePart(Model):
    type: Literal["image_url"]
    image_url: ImageUrl


class VideoUrl(Model):
    url: str


class VideoPart(Model):
    """Of no API of OpenAI's, but of servers that take clips, such as vLLM's."""

    type: Literal["video_url"]
    video_url: VideoUrl


TEXT, LIST = "a text", "a list"
"""Tags of what may be either; they stand in places of errors, and no member is called so."""


def _kind(value: Any) -> str:
    return TEXT if isinstance(value, str) else LIST


Text = Annotated[str, Tag(TEXT)]
Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MOST_PARTS), Tag(LIST)]
TextParts = Annotated[list[TextPart], Field(max_length=MOST_PARTS), Tag(LIST)]
Stops = Annotated[list[str], Field(max_length=MOST_STOPS), Tag(LIST)]


class SystemMessage(Model):
    role: Literal["system", "developer"]
    content: Annotated[Text | TextParts, Discriminator(_kind)]
    name: str | None = None


class UserMessage(Model):
    role: Literal["user"]
    content: Annotated[Text | Parts, Discriminator(_kind)]
    name: str | None = None


class AssistantMessage(Model):
    """As it was answered, with members that clients send back."""

    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["assistant"]
    content: Annotated[Text | TextParts, Discriminator(_kind)] = ""


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class TextFormat(Model):
    type: Literal["text"]


class ObjectFormat(Model):
    type: Literal["json_object"]


class NamedSchema(Model):
    """The schema is followed, whatever `strict` says."""

    name: str = Field(max_length=64)
    description: str | None = None
    content: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool = True


class SchemaFormat(Model):
    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[TextFormat | ObjectFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(Model):
    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(Model):
    """`sgl` holds options of a question by their names, and `return_importance`, `return_kept`."""

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0)
    stop: Annotated[Text | Stops, Discriminator(_kind)] | None = None
    response_format: Format | None = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stream: bool = False
    stream_options: StreamOptions | None = None
    sgl: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _drop_neutral(cls, value: Any) -> Any:
        """Raises ValueError for a member that would change an answer and is not served."""
        if not isinstance(value, dict):
            return value
        for name, neutral in NEUTRAL.items():
            if value.get(name) is not None and not any(_same(value[name], one) for one in neutral):
                served = " or ".join(map(repr, neutral))
                remedy = REMEDIES.get(name, "leave it out")
                raise ValueError(f"{name} is not served{f' but as {served}' if served else ''}; {remedy}")
        return {name: member for name, member in value.items() if name not in NEUTRAL and name not in IGNORED}


def _same(value: Any, other: Any) -> bool:
    """Numbers may be whole or not; true is no number."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
