"""The chat template of the transformers layout: the published one in all its spellings, and no other."""

import json
from pathlib import Path

import pytest

from engine.errors import CheckpointError
from engine.families.chat_template import find_template
from engine.families.internvl.config import TEMPLATES
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
    find_template(tmp_path, TEMPLATES)
    (tmp_path / "processor_config.json").write_text(json.dumps({"chat_template": template}))
    find_template(tmp_path, TEMPLATES)
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    find_template(tmp_path, TEMPLATES)
    (tmp_path / "chat_template.jinja").write_text(template)
    find_template(tmp_path, TEMPLATES)


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
        find_template(tmp_path, TEMPLATES)
    assert "\n" not in str(raised.value)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja holds another chat template"):
        find_template(tmp_path, TEMPLATES)


@pytest.mark.parametrize("content", [b"\xff", b"[" * 100])
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        find_template(tmp_path, TEMPLATES)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.json").write_text('{"chat_template": [{"name": "default"}]}')
    with pytest.raises(CheckpointError, match=r"chat_template\.json"):
        find_template(tmp_path, TEMPLATES)
