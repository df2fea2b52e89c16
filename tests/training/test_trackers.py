"""Curves to trackers: a recorder that is played, and the services in their offline modes."""

import json

import pytest
from toy import Line, line_data

from densejax.training import trackers
from densejax.training.folders import Member, Outcome, members_of, read_metrics
from densejax.training.logs import Reporter, Tracker
from densejax.training.sweep import Schedule, Sweep

SCHEDULE = Schedule(steps=30, log_every=5, evaluate_every=10, checkpoint_every=10)


class Played:
    """A tracker that keeps what it is told, and breaks when it is asked to."""

    def __init__(self, *, breaks_at=-1):
        self.rows, self.ended, self.closed, self.breaks_at = [], [], 0, breaks_at

    def row(self, member: Member, step, values) -> None:
        if step == self.breaks_at:
            raise ConnectionError("no route to the service")
        self.rows.append((member.name, step, dict(values)))

    def end(self, outcome: Outcome) -> None:
        self.ended.append((outcome.member.name, outcome.status, outcome.step))

    def close(self) -> None:
        self.closed += 1


class Killed(Reporter):
    """A reporter under which the process ends at a step of a member."""

    def __init__(self, at, **options):
        super().__init__(**options)
        self.at = at

    def row(self, occupant, row, *, evaluated):
        super().row(occupant, row, evaluated=evaluated)
        if row["step"] == self.at:
            raise KeyboardInterrupt


def train(workdir, tracker, *, seeds=(0, 1), reporter=Reporter, task=None):
    made = reporter(score="fit", trackers=[tracker])
    members = members_of(seeds, {})
    try:
        return Sweep(
            task or Line(),
            line_data(),
            members,
            workdir=workdir,
            schedule=SCHEDULE,
            reporter=made,
        ).run()
    finally:
        made.close()


def test_a_tracker_is_told_what_the_files_hold(tmp_path):
    played: Tracker = Played()
    outcomes = train(tmp_path, played)
    for outcome in outcomes:
        name = outcome.member.name
        told = [{"step": step} | values for n, step, values in played.rows if n == name]
        assert told == read_metrics(outcome.folder / "metrics.jsonl")
    assert played.ended == [("0000", "DONE", 30), ("0001", "DONE", 30)] and played.closed == 1


def test_a_member_that_fails_is_told_as_failed_with_numbers_only(tmp_path):
    played = Played()
    train(tmp_path, played, seeds=(0,), task=Line(blow_up_below=1e9))
    assert all(isinstance(v, float) for _, _, values in played.rows for v in values.values())
    assert played.ended[0][0] == "0000"


def test_a_tracker_that_breaks_is_left_out_and_the_members_train_on(tmp_path, capsys):
    broken, other = Played(breaks_at=10), Played()
    made = Reporter(score="fit", trackers=[broken, other])
    options = {"workdir": tmp_path, "schedule": SCHEDULE, "reporter": made}
    outcomes = Sweep(Line(), line_data(), members_of((0,), {}), **options).run()
    made.close()
    assert outcomes[0].status == "DONE"
    assert [step for _, step, _ in broken.rows] == [5] and len(other.rows) == 6
    said = capsys.readouterr().out
    assert said.count("Played is told no more of this run: ConnectionError: no route") == 1


def test_tensorboard_stays(tmp_path):
    events = tmp_path / "events"
    made = Reporter(score="fit", events=events)
    options = {"workdir": tmp_path / "run", "schedule": SCHEDULE, "reporter": made}
    Sweep(Line(), line_data(), members_of((0, 1), {}), **options).run()
    made.close()
    assert sorted(path.parent.name for path in events.rglob("events*")) == ["0000", "0001"]


def test_nothing_is_asked_for(tmp_path):
    assert trackers.tracker_of("", tmp_path, {}) == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("service", ["wandb", "mlflow"])
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, service):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=rf"--log_to={service} .*'densejax\[{service}\]'"):
        trackers.tracker_of(service, tmp_path, {})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="no mlflow: pip install 'densejax[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "store").as_uri()
    mlflow.set_tracking_uri(uri)
    yield mlflow.tracking.MlflowClient(uri)
    mlflow.set_tracking_uri(None)


def test_mlflow_has_a_run_a_member_and_a_resumed_one_goes_on(tmp_path, mlflow_store):
    workdir = tmp_path / "run"
    config = {"steps": 30, "augmentation": {"noise": 0.1}, "seeds": [0, 1]}

    def tracker():
        return trackers.tracker_of("mlflow", workdir, config)[0]

    with pytest.raises(KeyboardInterrupt):
        train(workdir, tracker(), reporter=lambda **o: Killed(25, **o))
    experiment = mlflow_store.get_experiment_by_name("densejax")
    runs = mlflow_store.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} <= {"KILLED"} and len(runs) in (1, 2)
    outcomes = train(workdir, tracker())
    runs = mlflow_store.search_runs([experiment.experiment_id])
    assert len(runs) == 2 and {run.info.status for run in runs} == {"FINISHED"}
    by_seed = {run.data.params["seed"]: run for run in runs}
    for outcome in outcomes:
        run = by_seed[str(outcome.member.seed)]
        assert run.data.params["augmentation.noise"] == "0.1"
        history = mlflow_store.get_metric_history(run.info.run_id, "loss")
        rows = read_metrics(outcome.folder / "metrics.jsonl")
        told = sorted((metric.step, metric.value) for metric in history)
        # Steps that were made again after the kill are told once.
        assert told == [(row["step"], row["loss"]) for row in rows]
        assert run.data.tags["densejax.reason"] == "all steps made"


def test_wandb_keeps_its_runs_offline_and_a_resumed_one_has_the_same_name(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="no wandb: pip install 'densejax[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    workdir = tmp_path / "run"
    workdir.mkdir()

    def tracker():
        return trackers.tracker_of("wandb", workdir, {"steps": 30})[0]

    with pytest.raises(KeyboardInterrupt):
        train(workdir, tracker(), reporter=lambda **o: Killed(25, **o))
    train(workdir, tracker())
    name = json.loads((workdir / trackers.NAMES).read_text())["name"]
    kept = sorted((workdir / "wandb").glob("offline-run-*"))
    names = {folder.name.split("-", 3)[3] for folder in kept}
    assert names == {f"{name}-0000", f"{name}-0001"} and len(kept) >= 3
    assert all(list(folder.glob("*.wandb")) for folder in kept)


def test_wandb_wants_a_login_or_its_offline_mode(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="no wandb: pip install 'densejax[wandb]'")
    wandb.teardown()  # it keeps the settings of the tests before
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ValueError, match="WANDB_MODE=offline"):
        trackers.tracker_of("wandb", tmp_path, {})


def test_a_store_that_mlflow_refuses_is_named(tmp_path, monkeypatch, mlflow_store):
    del mlflow_store
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "false")
    try:
        trackers.tracker_of("mlflow", tmp_path, {})
    except ValueError as error:
        assert str(error).startswith("--log_to=mlflow: the store cannot be used: ")


def test_a_name_of_a_run_is_of_letters_that_services_take():
    member = Member(7, {"learning_rate": 1e-3})
    name = trackers._run_id("my run-1a2b", member)
    assert name == "my_run-1a2b-0007_learning_rate_0_001"
