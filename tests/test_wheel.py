"""A wheel, installed in an empty environment outside of the checkout, plans, builds, answers, evaluates and exports."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from engine.config import SamplingConfig
from engine.runtime.pipeline import SglPipeline
from tests.wheel import ROOT, build_wheel, contents, install
from tools.scenes import make_scene


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("empty") / "environment")


def run(commands: Path, directory: Path, *arguments: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(commands / "sgl"), *map(str, arguments)]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_product_is_all_that_is_installed(wheel: Path, commands: Path, tmp_path: Path) -> None:
    assert contents(wheel) == {"engine"}
    found = subprocess.run(
        [str(commands / "python"), "-c", "import engine; print(engine.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    installed = Path(found.stdout.strip())
    assert installed.is_relative_to(commands.parent)
    roots = installed.parent, ROOT / "engine"
    page, served = ({file.name for file in (root / "serve/http/page").iterdir()} for root in roots)
    assert page == served


def test_it_plans_builds_answers_and_exports(commands: Path, pair: Path, tmp_path: Path) -> None:
    plan = run(commands, tmp_path, "plan", "--small", "InternVL2-2B", "--large", "InternVL2-26B", "--json")
    assert json.loads(plan)["ranks"]
    options = ("--small", pair / "small", "--large", pair / "large", "--max-tokens", 512)
    run(commands, tmp_path, "build", *options, "--out", "engine")
    picture = tmp_path / "scene.png"
    make_scene(seed=1, width=330, height=220, objects=5)[0].save(picture)
    asked = ("engine", "What is it?", "--image", picture, "--max-new-tokens", 4, "--threads", 1)
    answer = json.loads(run(commands, tmp_path, "ask", *asked, "--json"))
    with SglPipeline.load(tmp_path / "engine", threads=1) as pipeline:
        expected = pipeline.answer(picture, "What is it?", sampling=SamplingConfig(max_new_tokens=4))
    assert (answer["text"], answer["answered_by"]) == (expected.text, expected.answered_by)
    assert "components" in run(commands, tmp_path, "info", "engine", "--verify")

    question = {"id": 1, "image": picture.name, "question": "What is it?", "answers": [expected.text]}
    (tmp_path / "questions.jsonl").write_text(json.dumps(question))
    evaluated = ("--engine", "engine", "--benchmark", "own", "--data", ".", "--max-new-tokens", 4, "--label")
    summary = json.loads(run(commands, tmp_path, "evaluate", *evaluated, "--out", "run.jsonl", "--json"))
    assert summary["questions"] == 1
    run(commands, tmp_path, "calibrate", "--engine", "engine", "--run", "run.jsonl", "--exit-ratio", 0)
    assert "model sgl is in repository" in run(
        commands, tmp_path, "export", "--engine", "engine", "--out", "repository"
    )
    # What the server would import, with what is installed.
    served = (tmp_path / "repository" / "sgl" / "1" / "model.py").read_text()
    assert "from engine.serve.triton.model import TritonPythonModel" in served
