"""The chat template of the transformers layout: the published one in all its spellings, and no other."""

import json
from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.families.internvl.chat_template import check_chat_template
from tests.saved_internvl import CHAT_TEMPLATE

TEXT = "{% elif content['type'] == 'text'"
VIDEO = CHAT_TEMPLATE.replace(TEXT, "{% elif content['type'] == 'video' %}{{ '<video>\n' }}" + TEXT)
SYSTEM = "{{'<|im_start|>system\nYou are a pirate.<|im_end|>\n'}}" + CHAT_TEMPLATE


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        CHAT_TEMPLATE + "\n",
        VIDEO,
        CHAT_TEMPLATE.replace("\n", "\\n"),
        CHAT_TEMPLATE.replace("'", '"'),
        CHAT_TEMPLATE.replace("{% ", "{%- ").replace(" %}", "%}\n"),
        CHAT_TEMPLATE.replace("'] == '", "']=='").replace(" + ", "+"),
    ],
)
def test_spellings_of_the_published_one(tmp_path: Path, template: str) -> None:
    check_chat_template(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": template}))
    check_chat_template(tmp_path)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    check_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    check_chat_template(tmp_path)


@pytest.mark.parametrize(
    "template",
    [
        SYSTEM,
        CHAT_TEMPLATE.replace("assistant", "Assistant"),
        CHAT_TEMPLATE.replace("<IMG_CONTEXT>\n", "<IMG_CONTEXT>"),
        CHAT_TEMPLATE.replace("%}{{", "%} {{"),
        CHAT_TEMPLATE.replace("['content'] }}", "['content'] | trim }}"),
        "",
    ],
)
def test_another_is_refused(tmp_path: Path, template: str) -> None:
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(CheckpointError, match=r"chat_template\.json holds another chat template") as raised:
        check_chat_template(tmp_path)
    assert "\n" not in str(raised.value)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja holds another chat template"):
        check_chat_template(tmp_path)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        check_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": [{"name": "default"}]}')
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        check_chat_template(tmp_path)
