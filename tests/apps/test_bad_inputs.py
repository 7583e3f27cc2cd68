"""The whole list of bad inputs of the command: each is refused by one line that names the thing and the
remedy, and nothing that lies there is changed.

What a user loses if these fail: data, runs and evenings, by a slip of the fingers.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import bad_data
import bad_json
import bad_options
import bad_places
import bad_surroundings
import pytest
from bad_input import NOBODY, CannotBeMade, Case, Result, World, changes, complaints, shown, snapshot, walk
from command import COMMAND, DEADLINE, TINY, needs_command, steps_done
from starts import SANITIZED, ForkServer, Streams, run_alone

pytestmark = needs_command

CASES = [*bad_data.CASES, *bad_json.CASES, *bad_options.CASES, *bad_places.CASES, *bad_surroundings.CASES]
NOTHING = Path(os.devnull)
SECONDS = 20.0  # a refusal takes less than one; what takes this long hangs or trains
TEXT = "".join(f"{n} times {n} is {n * n}; that was {n}\n" for n in range(500))


class Runner:
    """Starts every case at once, as many as the machine has cores, and keeps what came of each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.finished = place / "finished"
        self.finished.mkdir()
        (self.finished / "text.txt").write_text(TEXT)
        self.server = ForkServer(place)
        self.live = self.make_runs()
        self.pool = ThreadPoolExecutor((os.cpu_count() or 1) + 1)
        self.results: dict[str, Future[Result]] = {}

    def make_runs(self) -> subprocess.Popen[bytes]:
        """A run and a comparison that are finished, and a run that goes on, held in the
        middle so that nothing moves."""
        shape = ["--data", "text.txt", *map(str, TINY)]
        for own in (
            ["train", *shape, "--steps=1", "--out=run"],
            ["compare", *shape, "--steps=1", "--formats=native", "--no-plot", "--out=comparison"],
        ):
            subprocess.run([COMMAND, *own], cwd=self.finished, check=True, capture_output=True)
        # The kernel wakes what is held and has lost its parent: it would train for
        # ever where this test is killed.
        with_parent = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*with_parent, str(COMMAND), "train", *shape, "--steps=1000000", "--out=live"]
        live = subprocess.Popen(
            command, cwd=self.finished, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up = time.monotonic() + DEADLINE
        while live.poll() is None and steps_done(self.finished / "live") < 1 and time.monotonic() < give_up:
            time.sleep(0.01)
        live.send_signal(signal.SIGSTOP)
        return live

    def start(self, case: Case) -> None:
        if case.name not in self.results:
            self.results[case.name] = self.pool.submit(self.run, case)

    def run(self, case: Case) -> Result:
        world = World(self.place / case.name, self.finished)
        world.folder.mkdir()
        (world.folder / "text.txt").write_text(TEXT)
        user = NOBODY if case.as_nobody and os.geteuid() == 0 else 0
        try:
            if user:
                give_away(world.folder, user)
            for make in case.make:
                make(world)
                if user:
                    give_away(world.folder, user)
        except CannotBeMade as reason:
            return Result(None, b"", b"", (), str(reason))
        before = snapshot(world.folder)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, NOTHING.open("rb") as none:
            streams = Streams(none, out, err, world.folder)
            if case.shell:
                code = run_alone(case.arguments, streams, user, SECONDS, case.shell)
            else:
                code = self.server.run(case.arguments, streams, user, SECONDS)
            out.seek(0)
            err.seek(0)
            return Result(code, out.read(), err.read(), changes(before, snapshot(world.folder)))

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)
        self.live.kill()
        self.live.wait()
        self.server.close()


def give_away(folder: Path, user: int) -> None:
    for path in walk(folder):
        os.chown(path, user, user, follow_symlinks=False)


@pytest.fixture(scope="module")
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    # Not pytest's own folder, which only its owner may enter: some cases run as another user.
    place = Path(tempfile.mkdtemp(prefix="flashoptim-bad-inputs-"))
    place.chmod(0o755)
    runner = Runner(place)
    for item in request.session.items:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")  # type: ignore[attr-defined]
        if isinstance(case, Case):
            runner.start(case)
    yield runner
    runner.close()
    for at, folders, _ in os.walk(place):
        for folder in (Path(at, name) for name in folders):
            if not folder.is_symlink():
                folder.chmod(0o755)  # some were closed to their owner
    shutil.rmtree(place)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_and_nothing_is_changed(runner: Runner, case: Case) -> None:
    if case.limits_memory and SANITIZED:
        pytest.skip("a sanitizer reserves more memory than any limit")
    runner.start(case)
    result = runner.results[case.name].result()
    if result.cannot:
        pytest.skip(result.cannot)
    found = complaints(case, result)
    if found:
        pytest.fail(f"{'; '.join(found)}. It said: {shown(result.errors)[:1000]!r}", pytrace=False)


def test_the_list_is_long_and_names_each_case_once() -> None:
    assert len(CASES) >= 300
    assert len({case.name for case in CASES}) == len(CASES)
