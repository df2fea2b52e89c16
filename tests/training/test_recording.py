"""Frames of training: they change no bit, come at their steps, and survive kills unchanged."""

import jax.numpy as jnp
import numpy as np
import pytest
from toy import Line, line_data

from densejax.training.checkpoint import restore_tree
from densejax.training.folders import MemberFolder, frames_of, members_of
from densejax.training.sweep import Recording, Schedule, Sweep

SCHEDULE = Schedule(steps=30, log_every=5, evaluate_every=10, checkpoint_every=10)
POINTS = np.linspace(-1, 1, 7, dtype=np.float32)


def line(state, data):
    """What the fitted line says at some points, and the step."""
    w = state["w"]
    return {"line": w[0] * data["points"] + w[1], "step": state["step"]}


def sweep_in(workdir, *, every=10, seeds=(0, 1, 2), slots=2, frame=line, **options):
    recording = Recording(every, frame, {"points": POINTS}) if every else None
    return Sweep(
        options.pop("task", Line()),
        line_data(),
        members_of(seeds, options.pop("grid", {})),
        workdir=workdir,
        schedule=SCHEDULE,
        slots=slots,
        recording=recording,
        **options,
    )


def everything(folder):
    """Bytes of all files of a folder's members but their frames, by name."""
    found = {}
    for path in sorted((folder / "seeds").rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and "frames" not in name.parts:
            found[str(name)] = path.read_bytes()
    return found


def parameters(outcome, name):
    return restore_tree(outcome.folder / name, {"w": np.zeros(2, np.float32)})["w"]


def test_recording_changes_no_trained_bit(tmp_path):
    plain = sweep_in(tmp_path / "plain", every=0).run()
    filmed = sweep_in(tmp_path / "filmed").run()
    for one, other in zip(plain, filmed, strict=True):
        for name in ("best", "last"):
            assert parameters(one, name).tobytes() == parameters(other, name).tobytes()
        for name in ("metrics.jsonl", "DONE"):
            assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
        assert not frames_of(one.folder)


def test_frames_are_of_the_start_the_interval_and_the_end(tmp_path):
    # Twenty does not divide thirty: the end is kept all the same.
    for outcome in sweep_in(tmp_path, every=20).run():
        frames = frames_of(outcome.folder)
        assert [step for step, _ in frames] == [0, 20, 30]
        for step, path in frames:
            with np.load(path) as arrays:
                assert arrays["step"] == step
                assert arrays["line"].shape == (7,)
        last = parameters(outcome, "last")
        with np.load(frames[-1][1]) as arrays:
            # Compiled, the product is not rounded before the sum.
            np.testing.assert_allclose(arrays["line"], last[0] * POINTS + last[1], atol=1e-6)


def test_a_member_that_stops_early_or_fails_is_kept_to_its_end(tmp_path):
    (stopped,) = sweep_in(tmp_path / "a", every=15, seeds=(0,), task=Line(give_up_at=20)).run()
    assert [step for step, _ in frames_of(stopped.folder)] == [0, 15, 20]
    (failed,) = sweep_in(tmp_path / "b", seeds=(0,), grid={"rate": [1e20]}).run()
    assert failed.status == "FAILED"
    # Parameters that are not finite show nothing.
    assert [step for step, _ in frames_of(failed.folder)] == [0]


class Killed(BaseException):
    """Raised where a kill would have landed."""


@pytest.mark.parametrize(("call", "after"), [(1, True), (4, False), (7, True)])
def test_kills_lose_no_frame_and_change_none(tmp_path, monkeypatch, call, after):
    whole = sweep_in(tmp_path / "whole", every=5).run()
    calls = []
    log = MemberFolder.log

    def dying(folder, row):
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        log(folder, row)
        if len(calls) == call:
            raise Killed

    with monkeypatch.context() as context:
        context.setattr(MemberFolder, "log", dying)
        with pytest.raises(Killed):
            sweep_in(tmp_path / "cut", every=5).run()
    # What a kill in the middle of a frame leaves.
    left = tmp_path / "cut" / "running" / "0000" / "frames" / ".0000000010.npz.partial"
    if not left.with_name("0000000010.npz").exists() and left.parent.exists():
        left.write_bytes(b"half")
    resumed = sweep_in(tmp_path / "cut", every=5).run()
    for one, other in zip(whole, resumed, strict=True):
        frames = [frames_of(outcome.folder) for outcome in (one, other)]
        assert [step for step, _ in frames[0]] == list(range(0, 31, 5))
        for (step, path), (same, again) in zip(*frames, strict=True):
            assert step == same and path.read_bytes() == again.read_bytes()
        assert not list(other.folder.rglob("*.partial"))


def test_a_run_may_go_on_with_recording(tmp_path, monkeypatch):
    keep = Sweep._keep
    sweep = sweep_in(tmp_path, every=0, seeds=(0,))

    def stop(endings):
        keep(sweep, endings)
        if sweep._occupants[0].step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    (outcome,) = sweep_in(tmp_path, every=5, seeds=(0,)).run()
    assert [step for step, _ in frames_of(outcome.folder)] == [10, 15, 20, 25, 30]


def test_an_interval_that_does_not_divide_is_refused(tmp_path):
    for every in (7, -5):
        with pytest.raises(ValueError, match=rf"every {every} steps.*log_every=5"):
            sweep_in(tmp_path, every=every)


def test_frames_of_many_shapes_are_kept_as_they_are(tmp_path):
    def frame(state, data):
        del data
        return {"bytes": jnp.uint8(state["step"]) * jnp.ones((2, 3), jnp.uint8)}

    (outcome,) = sweep_in(tmp_path, every=10, seeds=(4,), frame=frame).run()
    with np.load(frames_of(outcome.folder)[2][1]) as arrays:
        assert arrays["bytes"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["bytes"], np.full((2, 3), 20))
