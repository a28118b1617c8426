"""Ranks whose plans sum over NCCL, with everything but GPUs, their driver and NCCL (`stand_in_gpu`)."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from engine.build.builder import build_pair
from engine.cli.export import write_repository
from engine.config import BuildConfig, ExitConfig, GuidanceConfig, GuidanceSource, SamplingConfig
from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.runtime import tensor_parallel_group
from engine.runtime.pipeline import SglPipeline
from engine.runtime.question import Question
from engine.runtime.tensor_parallel import Message, Step, identify
from engine.runtime.tensor_parallel_group import Group
from engine.serve.triton.serve_config import ServeConfig
from engine.serve.triton.tensors import MODEL
from engine.target import Precision, Target
from tests import fake_nccl
from tests.serve import fake_triton
from tests.stand_in_gpu import put_compiler, put_gpus
from tests.stand_in_python import stand_in_python
from tests.tensor_parallel import gpu_rank
from tests.tensor_parallel.conftest import Engines
from tests.tensor_parallel.test_failure import PATIENCE_SECONDS, wait_until_gone
from tests.tolerance import TOLERANCE

pytestmark = pytest.mark.xdist_group("tensor parallel")
NEVER = ExitConfig(enabled=False)


@pytest.fixture(scope="session")
def plans(config: Callable[..., BuildConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair of `engines` as plans for two ranks."""
    out = tmp_path_factory.mktemp("plans") / "tp2"
    with pytest.MonkeyPatch.context() as patch:
        put_compiler(patch)
        planned = {"target": Target.TENSORRT_RTX, "precision": Precision.BF16, "max_tokens": 300}
        build_pair(config(out, world_size=2, **planned))
    return out


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where ranks that are started leave their events; they have two GPUs."""
    monkeypatch.setattr(fake_nccl, "PLACE", tmp_path)
    monkeypatch.setenv("FAKE_NCCL", str(tmp_path))
    monkeypatch.setenv("FAKE_GPUS", "2")
    return tmp_path


@pytest.fixture
def group(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    """Started by a process that has two GPUs, as the ranks do."""
    put_gpus(monkeypatch, 2)
    python = stand_in_python(place, Path(gpu_rank.__file__))
    monkeypatch.setattr(tensor_parallel_group, "_python", lambda: python)
    for patience in ("START_SECONDS", "STOP_SECONDS"):
        monkeypatch.setattr(tensor_parallel_group, patience, PATIENCE_SECONDS)
    group = Group()
    yield group
    group.close()


def events(place: Path) -> list[str]:
    """What happened to GPUs and communicators, in order."""
    file = place / "events"
    return file.read_text().splitlines() if file.exists() else []


def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`mpiexec -n 2 sgl ask …` on such a machine."""
    launch = [str(Path(sys.executable).parent / "mpiexec"), "-n", "2", sys.executable, gpu_rank.__file__]
    command = [*launch, "-m", "engine.cli", "ask", *map(str, arguments), "--no-early-exit", "--max-new-tokens", "6"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def test_mpiexec_answers_like_one_process(
    engines: Engines, plans: Path, place: Path, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.save(place / "picture.png")
    done = ask(plans, "What?", "--image", place / "picture.png", "--threads", 1, "--json", "--device", "cuda")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    expected = SglPipeline.load(engines(1), threads=1).answer(
        [picture], "What?", exit=NEVER, sampling=SamplingConfig(max_new_tokens=6)
    )
    assert (said["text"], said["answered_by"]) == (expected.text, "large")
    assert expected.kept is not None and said["keep_index"] == expected.kept.tolist()

    happened = events(place)
    (made,) = (event for event in happened if event.startswith("id "))
    for rank in range(2):
        mine = [event for event in happened if event.split()[1] == str(rank)]
        connected = mine.index(f"init {rank} of 2 with {made.split()[1]}")
        assert mine[connected - 1] == f"gpu {rank}"
        assert mine[connected + 1 : connected + 3] == [f"set {rank}"] * 2, "a context for each profile"
        assert set(mine[connected + 3 : -1]) == {f"run {rank}"}
        assert mine[-1] == f"destroy {rank}"


def test_a_group_answers_like_one_process(
    engines: Engines, plans: Path, place: Path, group: Group, picture: Image.Image
) -> None:
    """Scores of all ranks rank the visual tokens; tiles are shared out."""
    questions = [
        Question(
            (picture,) * (2 - index),
            "What is in the picture?" + " Say more." * index,
            GuidanceConfig(source=source, retention_ratio=0.3, prune_layer=2),
            NEVER,
            SamplingConfig(max_new_tokens=5, temperature=index * 0.5, top_k=4, seed=3),
        )
        for index, source in enumerate((GuidanceSource.SMALL, GuidanceSource.ORACLE))
    ]
    actual = SglPipeline.load(plans, threads=1, ranks=group).answer_batch(questions)
    for one, other in zip(actual, SglPipeline.load(engines(1), threads=1).answer_batch(questions), strict=True):
        assert (one.token_ids, one.answered_by) == (other.token_ids, other.answered_by)
        assert_allclose(one.probabilities, other.probabilities, **TOLERANCE["fp32"])
        assert one.kept is not None and other.kept is not None
        assert_array_equal(one.kept, other.kept)
    ranks = group.process_ids()
    group.close()
    wait_until_gone(ranks)
    assert sorted(events(place)[-2:]) == ["destroy 0", "destroy 1"]


REFUSALS = {
    "too few GPUs": (
        {"FAKE_GPUS": "1"},
        "2 ranks of {plans} run on this machine, each on a GPU of its own, and torch sees 1; start some of them on "
        "another machine with mpiexec, or rebuild with a smaller --tp",
        "rank 0",
    ),
    "no NCCL": (
        {"FAKE_NCCL_MISSING": ""},
        "plans of several ranks need NCCL, which is not installed (libnccl.so.2 was not found); "
        "pip install 'sgl-engine[nccl]'",
        "rank 0",
    ),
    "a rank that cannot connect": (
        {"FAKE_NCCL_FAILING_RANK": "1"},
        "NCCL could not connect GPU 1 with those of the other ranks (UnhandledSystemError (2): unhandled system "
        "error); NCCL_DEBUG=INFO in the environment makes it say more",
        "rank 1",
    ),
    "a plan that does not take the communicator": (
        {"FAKE_REFUSING_RANK": "1"},
        "{plans}/large/rank1/language.plan does not take the NCCL communicator; rebuild it with sgl build for "
        "as many ranks as run it, with the TensorRT that is installed here",
        "rank 1",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_ranks_that_do_not_come_together_say_why(
    plans: Path, place: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    environment, said, rank = REFUSALS[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    done = ask(plans, "What?", "--threads", 1)
    assert (done.returncode, done.stdout) == (2, "")
    start, _, sentence = done.stderr.partition(": ")
    assert start.startswith(f"{rank} on ")
    assert sentence == said.format(plans=plans) + "\n"
    assert not any(event.startswith("run") for event in events(place))


def test_other_versions_are_refused(plans: Path, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(plans)
    mine = identify(manifest)
    other = replace(mine, versions=mine.versions | {"nccl4py": "0.0"})
    monkeypatch.setattr(tensor_parallel_group, "identify", lambda manifest: other)
    with pytest.raises(EngineError, match=r"rank 0 on .*tp2 is run by nccl4py .* instead of 0.0; give all ranks"):
        group.open(plans, manifest, threads=1, places=1)


@pytest.mark.parametrize(("first", "seen", "ranks_on"), [("0", None, "01"), ("3", None, "32"), ("3", "4,5,6,7", "76")])
def test_a_served_instance_is_on_the_gpus_it_was_placed_on(
    engines: Engines,
    plans: Path,
    place: Path,
    group: Group,
    picture: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    seen: str | None,
    ranks_on: str,
) -> None:
    """By the server, which counts the GPUs that it sees itself."""
    monkeypatch.setenv("FAKE_GPUS", "8")
    put_gpus(monkeypatch, 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen or "")
    if seen is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_triton.make_module())
    monkeypatch.delitem(sys.modules, "engine.serve.triton.backend", raising=False)
    backend = importlib.import_module("engine.serve.triton.backend")
    monkeypatch.delitem(sys.modules, "engine.serve.triton.backend")
    write_repository(plans, place / "repository", ServeConfig(threads=1, gpus=(0, 1, 3, 2)), link=True)
    text = (place / "repository" / MODEL / "config.pbtxt").read_text()
    assert "KIND_GPU count: 1 gpus: [ 0, 3 ]" in text
    parameters = re.findall(r'key: "(\w+)" value: { string_value: "(.*?)" }', text)
    args = {
        "model_repository": str(place / "repository" / MODEL),
        "model_version": "1",
        "model_config": json.dumps({"parameters": {key: {"string_value": value} for key, value in parameters}}),
        "model_instance_kind": "GPU",
        "model_instance_device_id": first,
    }
    with backend.open_pipeline(args, backend.open_reader(args)) as pipeline:
        sampling = SamplingConfig(max_new_tokens=2)
        assert pipeline.answer([picture], "What?", exit=NEVER, sampling=sampling).answered_by == "large"
    assert {event for event in events(place) if event.startswith("gpu ")} == {f"gpu {gpu}" for gpu in ranks_on}


def test_gpus_that_groups_cannot_share_out_are_refused(
    plans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpus(monkeypatch, 3)
    with pytest.raises(EngineError, match=r"--gpus names 3 GPUs, which processes of 2 each cannot share out; give"):
        write_repository(plans, tmp_path / "repository", ServeConfig(gpus=(0, 1, 2)))
    assert not list(tmp_path.iterdir())


def test_a_failed_rank_leaves_the_sum_and_ends_the_others(
    plans: Path, place: Path, group: Group, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAILING_RUN", "1 4")
    pipeline = SglPipeline.load(plans, threads=1, ranks=group)
    ranks = group.process_ids()
    with pytest.raises(
        EngineError, match=r"died \(RuntimeError: .*rank1/language.plan failed on the GPU\) during step"
    ):
        pipeline.answer([picture], "What?", exit=NEVER)
    wait_until_gone(ranks)
    happened = events(place)
    assert "abort 1" in happened
    assert not any(event.startswith("destroy") for event in happened)


def test_a_killed_rank_ends_the_request_and_the_next_one_works(
    plans: Path, group: Group, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = SglPipeline.load(plans, threads=1, ranks=group)
    first = group.process_ids()

    do = group.do

    def kill_before_a_step(message: Message) -> object:
        if isinstance(message, Step) and group.process_ids() == first:
            os.kill(first[1], signal.SIGKILL)
        return do(message)

    monkeypatch.setattr(group, "do", kill_before_a_step)
    sampling = SamplingConfig(max_new_tokens=5)
    with pytest.raises(EngineError, match=r"a rank of .*tp2 died during step; ask again: the ranks are started anew"):
        pipeline.answer([picture], "What?", exit=NEVER, sampling=sampling)
    wait_until_gone(first)
    assert len(pipeline.answer([picture], "What?", exit=NEVER, sampling=sampling).token_ids) == 5
