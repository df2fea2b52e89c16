"""The sweep: what a seed promises, what trouble costs, and that nothing compiles twice."""

import json
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from toy import Line, line_data

from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Member, members_of, read_curves, read_metrics
from densejax.training.sweep import Schedule, Sweep

SCHEDULE = Schedule(steps=30, log_every=5, evaluate_every=10, checkpoint_every=10)


def run(workdir, seeds, *, task=None, schedule=SCHEDULE, grid=None, **options):
    members = members_of(seeds, grid or {})
    sweep = Sweep(
        task or Line(), line_data(), members, workdir=workdir, schedule=schedule, **options
    )
    return sweep.run(), sweep


def parameters(outcome, name="last"):
    template = {"w": np.zeros(2, np.float32)}
    return restore_tree(outcome.folder / name, template)["w"]


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_a_seeds_bits_do_not_depend_on_slot_company_or_devices(tmp_path, slots):
    alone, _ = run(tmp_path / "alone", [7])
    together, _ = run(tmp_path / "together", [3, 4, 5, 6, 7], slots=slots)
    seven = next(outcome for outcome in together if outcome.member.seed == 7)
    np.testing.assert_array_equal(parameters(alone[0]), parameters(seven))
    np.testing.assert_array_equal(parameters(alone[0], "best"), parameters(seven, "best"))


def test_training_agrees_with_a_plain_python_loop(tmp_path):
    import jax

    from densejax.population import instance_key

    outcomes, _ = run(tmp_path, [2])
    task, data = Line(), line_data()
    state = task.init(instance_key(jax.random.key(0), 2), {})
    for _ in range(SCHEDULE.steps):
        state, _measures = task.step(state, data)
    np.testing.assert_allclose(parameters(outcomes[0]), state["w"], rtol=1e-5)


def test_more_seeds_extend_a_sweep_without_training_the_first_again(tmp_path):
    first, _ = run(tmp_path, [0, 1])
    stamps = [(o.folder / "metrics.jsonl").stat().st_mtime_ns for o in first]
    both, _ = run(tmp_path, [0, 1, 2])
    assert [o.member.seed for o in both] == [0, 1, 2]
    assert stamps == [(o.folder / "metrics.jsonl").stat().st_mtime_ns for o in both[:2]]


def test_slots_are_refilled_without_compiling_again(tmp_path):
    _, sweep = run(tmp_path, range(7), slots=2)
    assert sweep.programs.advance.compilations == 1
    assert sweep.programs.judge.compilations == 1


def test_an_instance_that_diverges_fails_alone(tmp_path):
    outcomes, _ = run(tmp_path, [0], grid={"rate": [0.05, 1e20]}, slots=2)
    assert [outcome.status for outcome in outcomes] == ["DONE", "FAILED"]
    assert (outcomes[1].folder / "FAILED").exists()
    calm, _ = run(tmp_path / "calm", [0], grid={"rate": [0.05]})
    np.testing.assert_array_equal(parameters(outcomes[0]), parameters(calm[0]))


def test_early_stop_ends_a_member_and_frees_its_slot(tmp_path):
    outcomes, _ = run(tmp_path, [0, 1], task=Line(give_up_at=20), slots=1)
    assert [outcome.step for outcome in outcomes] == [20, 20]
    assert {outcome.reason for outcome in outcomes} == {"stopped early"}


def test_best_parameters_are_those_of_the_best_evaluation(tmp_path):
    schedule = Schedule(steps=200, log_every=5, evaluate_every=5, checkpoint_every=100)
    outcomes, _ = run(tmp_path, [1], schedule=schedule)
    rows = read_metrics(outcomes[0].folder / "metrics.jsonl")
    scores = [row["fit"] for row in rows]
    assert outcomes[0].best_step == rows[int(np.argmax(scores))]["step"]
    data, w = line_data(), parameters(outcomes[0], "best")
    fit = -np.mean((w[0] * data["x"] + w[1] - data["y"]) ** 2)
    np.testing.assert_allclose(fit, max(scores), rtol=1e-4)


def plateau(tmp_path, workdir, **options):
    """A score that rises to step 20 and stays: what the schedule makes of it."""
    schedule = Schedule(steps=100, log_every=5, evaluate_every=10, checkpoint_every=10, **options)
    outcomes, _ = run(tmp_path / workdir, [0, 1], task=Plateau(), schedule=schedule, slots=1)
    return outcomes


class Plateau(Line):
    def evaluate(self, state, data):
        del data
        return {"fit": np.float32(1) * (state["step"] >= 20)}


def test_patience_ends_a_member_that_gets_no_better(tmp_path):
    for outcome in plateau(tmp_path, "first", patience=30):
        assert (outcome.step, outcome.best_step) == (60, 20)
        assert (outcome.status, outcome.reason) == ("DONE", "no better since step 20")
    assert [outcome.step for outcome in plateau(tmp_path, "none")] == [100, 100]


def test_of_equal_scores_the_later_may_win_and_renews_the_patience(tmp_path):
    for outcome in plateau(tmp_path, "later", patience=30, later_wins=True):
        assert (outcome.step, outcome.best_step) == (100, 100)


def test_a_resumed_member_keeps_its_patience(tmp_path, monkeypatch):
    schedule = Schedule(100, 5, 10, 10, patience=30)
    sweep = Sweep(Plateau(), line_data(), members_of([0], {}), workdir=tmp_path, schedule=schedule)
    keep = Sweep._keep

    def stop_at_forty(endings):
        keep(sweep, endings)
        if sweep._occupants[0].step == 40:
            raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_keep", stop_at_forty)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    outcomes, _ = run(tmp_path, [0], task=Plateau(), schedule=schedule)
    assert (outcomes[0].step, outcomes[0].best_step) == (60, 20)


@pytest.mark.parametrize("interrupted_at", [1, 2, 3, 4, 5])
def test_an_interrupted_sweep_goes_on_to_the_same_bits(tmp_path, interrupted_at, monkeypatch):
    whole, _ = run(tmp_path / "whole", [0, 1, 2], slots=2)
    sweep = Sweep(
        Line(),
        line_data(),
        members_of([0, 1, 2], {}),
        workdir=tmp_path / "cut",
        schedule=SCHEDULE,
        slots=2,
    )
    calls = []

    def stop_here(endings):
        calls.append(1)
        if len(calls) == interrupted_at:
            raise KeyboardInterrupt
        return Sweep._keep(sweep, endings)

    monkeypatch.setattr(sweep, "_keep", stop_here)
    with pytest.raises(KeyboardInterrupt):
        sweep.run()
    resumed, _ = run(tmp_path / "cut", [0, 1, 2], slots=3)
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_array_equal(parameters(one), parameters(other))
        assert read_metrics(one.folder / "metrics.jsonl") == read_metrics(
            other.folder / "metrics.jsonl"
        )


def test_the_three_strategies_agree_at_the_first_steps(tmp_path):
    schedule = Schedule(steps=2, log_every=1, evaluate_every=2, checkpoint_every=2)
    results = {}
    for strategy in ("map", "vmap", "auto"):
        outcomes, _ = run(tmp_path / strategy, range(9), strategy=strategy, schedule=schedule)
        results[strategy] = [parameters(outcome) for outcome in outcomes]
    np.testing.assert_allclose(results["map"], results["vmap"], rtol=1e-5)
    np.testing.assert_allclose(results["map"], results["auto"], rtol=1e-5)


def test_a_schedule_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="evaluate_every=7 must be a multiple of log_every=5"):
        Schedule(steps=10, log_every=5, evaluate_every=7, checkpoint_every=5)


def test_a_member_is_named_by_seed_and_settings():
    assert Member(7, {"rate": 1e-3}).name == "0007,rate=0.001"
    with pytest.raises(ValueError, match="twice"):
        members_of([1, 1], {})


def test_outcomes_are_read_back_from_the_folder(tmp_path):
    first, _ = run(tmp_path, [0])
    again, _ = run(tmp_path, [0])
    assert first == again
    assert json.loads((first[0].folder / "DONE").read_text())["step"] == SCHEDULE.steps


def begin(member, slot):
    """Weights that tell the seed, in the place of those that were drawn."""
    w = np.array([member.seed, 1], np.float32)
    return dict(slot, state=dict(slot["state"], w=w), best={"w": w})


def test_a_member_may_begin_from_given_parameters(tmp_path):
    import jax

    from densejax.population import instance_key

    outcomes, _ = run(tmp_path, [3, 5, 4], begin=begin, slots=2)
    task, data = Line(), line_data()
    for outcome in outcomes:
        seed = outcome.member.seed
        state = task.init(instance_key(jax.random.key(0), seed), {})
        state = dict(state, w=np.array([seed, 1], np.float32))
        for _ in range(SCHEDULE.steps):
            state, _measures = task.step(state, data)
        np.testing.assert_allclose(parameters(outcome), state["w"], rtol=1e-5)


def test_a_member_begins_once_and_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole, _ = run(tmp_path / "whole", [0, 1], begin=begin)
    keep, calls = Sweep._keep, []

    def stop_at_the_third(self, endings):
        keep(self, endings)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_keep", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", [0, 1], begin=begin)
    begun = []
    cut, _ = run(tmp_path / "cut", [0, 1], begin=lambda member, slot: begun.append(member))
    assert not begun
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_array_equal(parameters(one), parameters(other))


def swept(workdir, *, probe=None, settled=None, schedule=SCHEDULE, **options):
    """A sweep of five members in two slots, timed before it begins or not."""
    sweep = Sweep(
        Line(),
        line_data(),
        members_of(range(5), {}),
        workdir=workdir,
        schedule=schedule,
        slots=2,
        **options,
    )
    if probe:
        sweep.probe(steps=probe)
    if settled:
        sweep.settle(*settled)
    return sweep.run(), sweep


def assert_same_bits(one, other):
    for a, b in zip(one, other, strict=True):
        assert (a.status, a.step, a.best_step, a.best_score) == (
            b.status,
            b.step,
            b.best_step,
            b.best_score,
        )
        for name in ("best", "last"):
            np.testing.assert_array_equal(parameters(a, name), parameters(b, name))
        rows = [read_metrics(o.folder / "metrics.jsonl") for o in (a, b)]
        assert rows[0] == rows[1]


class FasterLine(Line):
    """Begins its members with another rate; a step is the same function of the state."""

    def init(self, key, settings):
        return dict(super().init(key, settings), rate=np.float32(0.2))


LONGER = Schedule(steps=45, log_every=15, evaluate_every=15, checkpoint_every=15)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder and outcomes of a sweep that was neither timed nor settled."""
    workdir = tmp_path_factory.mktemp("plain")
    return workdir, swept(workdir)[0]


@pytest.fixture(scope="module")
def faster(tmp_path_factory):
    """Outcomes of a sweep that was set up with the task and the schedule others settle on."""
    workdir = tmp_path_factory.mktemp("faster")
    return run(workdir, range(5), task=FasterLine(), schedule=LONGER, slots=2)[0]


def test_a_probe_leaves_no_trace(tmp_path, plain):
    probed, sweep = swept(tmp_path, probe=3)
    assert_same_bits(plain[1], probed)
    assert sweep.programs.advance.compilations == 1
    assert sweep.programs.judge.compilations == 1


def test_a_probe_tells_times_and_writes_nothing(tmp_path):
    sweep = Sweep(Line(), line_data(), members_of([0, 1], {}), workdir=tmp_path, schedule=SCHEDULE)
    found = sweep.probe()
    assert found.step > 0 and found.evaluation > 0
    assert not list(tmp_path.rglob("metrics.jsonl")) and not list(tmp_path.rglob("DONE"))


def test_a_sweep_that_is_settled_is_one_of_that_task_and_schedule(tmp_path, faster):
    settled, sweep = swept(tmp_path, probe=4, settled=(FasterLine(), LONGER))
    assert_same_bits(settled, faster)
    assert sweep.programs.advance.compilations == sweep.programs.judge.compilations == 1


def test_a_settled_sweep_goes_on_from_its_checkpoints(tmp_path, faster, monkeypatch):
    keep, calls = Sweep._keep, []

    def stop_at_the_second(self, endings):
        keep(self, endings)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "_keep", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            swept(tmp_path, probe=2, settled=(FasterLine(), LONGER))
    cut, _ = swept(tmp_path, probe=3, settled=(FasterLine(), LONGER))
    assert_same_bits(cut, faster)


def test_there_is_nothing_to_time_where_every_member_has_ended(plain):
    with pytest.raises(ValueError, match="every member has ended"):
        swept(plain[0], probe=2)


@dataclass(frozen=True)
class Unscored(Line):
    """Scores are no numbers, or are infinite, up to a step; the loss stays finite."""

    until: int = 1000
    value: float = float("nan")

    def evaluate(self, state, data):
        measures = super().evaluate(state, data)
        early = state["step"] < self.until
        return {"fit": jnp.where(early, self.value, measures["fit"]), "parts": jnp.full(2, jnp.nan)}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_never_ranks_and_stays_out_of_the_file(tmp_path, value):
    task = Unscored(until=25, value=value)
    (outcome,), _ = run(tmp_path / "some", [0], task=task)
    (plain,), _ = run(tmp_path / "plain", [0])
    assert outcome.status == "DONE" and outcome.best_step == 30
    assert outcome.best_score == read_metrics(plain.folder / "metrics.jsonl")[-1]["fit"]
    text = (outcome.folder / "metrics.jsonl").read_text()

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    rows = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    scores = {row["step"]: row["fit"] for row in rows if "fit" in row}
    assert {step: score is None for step, score in scores.items()} == {
        step: step < 25 for step in scores
    }
    assert rows[-1]["parts"] == [None, None]
    steps, values = read_curves([outcome], "fit")
    assert steps.min() >= 25 and np.isfinite(values).all()


def test_a_member_that_was_never_scored_has_failed(tmp_path):
    (outcome,), _ = run(tmp_path, [0], task=Unscored())
    assert outcome.status == "FAILED" and "fit was never a finite number" in outcome.reason
    assert (outcome.folder / "FAILED").exists() and not (outcome.folder / "DONE").exists()
