"""A killed or doubled build: no moment leaves half an engine directory, and the next build goes on from there."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.build.staging import build_components
from engine.engine_directory import read_manifest
from engine.errors import EngineError
from engine.verification import verify
from tests.builder.test_staging import NAMES, assert_engine, component, components, forbid, make_manifest, tree

ROOT = Path(__file__).parents[2]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "pair"


CHILD = """
import sys, time
from pathlib import Path
from engine.build.staging import build_components
from tests.builder.test_staging import NAMES, component, components, make_manifest

def hang(directory: Path) -> None:
    print("in the middle", flush=True)
    time.sleep(600)

wanted = [*components("new", NAMES[:2]), component(NAMES[2], "new", hang), *components("new", NAMES[3:])]
build_components(Path(sys.argv[1]), wanted, make_manifest)
"""


@contextmanager
def hanging_build(out: Path) -> Iterator[subprocess.Popen]:
    """A build in another process, in the middle of its third component; killed at the end."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(out)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        try:
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("existing", [False, True])
def test_killed_process_is_resumed(out: Path, number: signal.Signals, existing: bool) -> None:
    if existing:
        build_components(out, components("old"), make_manifest)
    before = tree(out)
    with hanging_build(out) as child:
        child.send_signal(number)
        child.wait()
    assert child.returncode == -number
    assert tree(out) == before
    assert out.exists() == existing
    report = build_components(out, components("new"), make_manifest)
    assert (report.resumed, report.built) == (NAMES[:2], NAMES[2:])
    assert_engine(out, "new")


def test_second_build_at_the_same_time_is_refused(out: Path) -> None:
    with hanging_build(out):
        with pytest.raises(EngineError, match=f"another build is writing {out}; wait"):
            build_components(out, components("new"), make_manifest)
        build_components(out.with_name("other"), components(), make_manifest)
    assert build_components(out, components("new"), make_manifest).resumed == NAMES[:2]


def test_lock_file_removed_while_being_locked_is_made_again(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = out.with_name(".pair.lock")
    lock = fcntl.flock
    calls = 0

    def lock_after_removal(descriptor: int, operation: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_removal)
    seen = []
    build_components(out, [component(NAMES[0], build=lambda directory: seen.append(path.exists()))], make_manifest)
    assert seen == [True]


FILE_EVENTS = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir")


def build_and_die(out: Path, at_event: int) -> bool:
    """Build in a child that is killed before its n-th file operation beside or in `out`; whether it got there."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            # Removals name their file relative to a directory handle.
            if event in FILE_EVENTS and (event.startswith("os.r") or str(out.parent) in str(arguments)):
                count += 1
                if count == at_event:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        build_components(out, [component(NAMES[0], "old"), *components("new", NAMES[1:3])], make_manifest)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("existing", [False, True])
def test_killed_at_every_file_operation(tmp_path: Path, existing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and a kill loses nothing that was written
    names = NAMES[:3]
    absent = 0
    for at_event in range(1, 1000):
        out = tmp_path / str(at_event) / "pair"
        if existing:
            build_components(out, components("old", names), make_manifest)
        killed = build_and_die(out, at_event)
        if out.exists():
            manifest = read_manifest(out)
            verify(out, manifest, components=names, full=True)
            texts = {name: (out / next(iter(manifest.components[name].files))).read_text() for name in names}
            assert {text.split()[2] for text in list(texts.values())[1:]} in ({"old"}, {"new"})
        else:
            absent += 1
            if existing:  # killed in the middle of the swap: the old engine comes back
                assert build_components(out, [forbid(name, "old") for name in names], make_manifest).cached == names
        if not killed:
            break
        other = at_event % 2 == 0  # after a kill, the same build again or another one
        build_components(out, components("other" if other else "old", names), make_manifest)
        assert_engine(out, "other" if other else "old", names)
    assert 20 < at_event < 999
    assert absent <= 1 if existing else absent > 20
