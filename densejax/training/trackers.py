"""Members' curves to Weights & Biases or MLflow: a member a run, with the sweep's configuration.

A run is known by a name that the sweep's folder keeps (``log_to.json``), so that a member that was
killed and resumed, here or elsewhere, goes on in the run that it began; steps that were told before
are left out. Servers, projects and offline modes are the services' own settings: ``WANDB_MODE``,
``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``.
"""

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from densejax.io import write_once
from densejax.training.folders import Member, Outcome
from densejax.training.logs import Tracker

Service = Literal["", "wandb", "mlflow"]

PROJECT = "densejax"
NAMES = "log_to.json"
_TAG = "densejax.name"
_LONGEST_VALUE = 500  # of an MLflow parameter, which every version takes


def tracker_of(service: Service, workdir: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """Make the tracker of a sweep; none for an empty name.

    Args:
      service: ``wandb``, ``mlflow`` or nothing.
      workdir: the sweep's folder.
      config: the sweep's configuration, as JSON holds it.

    Raises:
      ModuleNotFoundError: the service's library is not installed; the extra is named.
      ValueError: nobody is logged in to Weights & Biases, and it is not offline; or MLflow's store
        cannot be used.
    """
    if not service:
        return []
    if importlib.util.find_spec(service) is None:
        raise ModuleNotFoundError(
            f"--log_to={service} needs {service}: pip install 'densejax[{service}]'"
        )
    known = write_once(workdir / NAMES, {"name": f"{workdir.name}-{uuid.uuid4().hex[:8]}"})
    make: dict[str, Callable[..., Tracker]] = {"wandb": WeightsAndBiases, "mlflow": MLflow}
    return [make[service](known["name"], workdir, config)]


class WeightsAndBiases:
    """Runs of Weights & Biases, those of a sweep in one group."""

    def __init__(self, name: str, workdir: Path, config: Mapping[str, Any]) -> None:
        """Check that somebody is logged in; see ``tracker_of``."""
        import wandb

        self._name, self._workdir, self._config = name, workdir, dict(config)
        self._runs: dict[str, Any] = {}
        if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
            return
        try:
            wandb.login()  # asks on a terminal
        except wandb.errors.Error as error:
            raise ValueError(
                "--log_to=wandb: nobody is logged in; run wandb login, or set WANDB_MODE=offline "
                f"and wandb sync the folder later ({error})"
            ) from error

    def row(self, member: Member, step: int, values: Mapping[str, float]) -> None:
        """Log a member's scalars; its run begins, or goes on, with the first of them."""
        run = self._runs.get(member.name) or self._begin(member)
        if step >= run.step:  # else it was told before a kill
            run.log(dict(values), step=step)

    def end(self, outcome: Outcome) -> None:
        """Finish a member's run."""
        run = self._runs.pop(outcome.member.name, None)
        if run is not None:
            run.summary.update(_summary(outcome))
            run.finish(exit_code=0 if outcome.status == "DONE" else 1)

    def close(self) -> None:
        """Leave the runs of members that have not ended; they are resumed by their name."""
        for run in self._runs.values():
            run.finish(exit_code=1)
        self._runs.clear()

    def _begin(self, member: Member) -> Any:
        import wandb

        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=self._name,
            name=f"{self._workdir.name} {member.name}",
            id=_run_id(self._name, member),
            resume="allow",
            reinit="create_new",  # the members of a sweep train at once
            dir=str(self._workdir),
            config=self._config | _settings(member),
        )
        self._runs[member.name] = run
        return run


class MLflow:
    """Runs of MLflow, found again by a tag."""

    def __init__(self, name: str, workdir: Path, config: Mapping[str, Any]) -> None:
        """Find or make the experiment; see ``tracker_of``."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._name, self._workdir, self._config = name, workdir, dict(config)
        wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            self._client: Any = MlflowClient()
            found = self._client.get_experiment_by_name(wanted)
            known = found.experiment_id if found else self._client.create_experiment(wanted)
        except MlflowException as error:
            raise ValueError(f"--log_to=mlflow: the store cannot be used: {error}") from error
        self._experiment: str = known
        self._runs: dict[str, tuple[str, int]] = {}  # id, and the last step that it was told

    def row(self, member: Member, step: int, values: Mapping[str, float]) -> None:
        """Log a member's scalars; its run begins, or goes on, with the first of them."""
        from mlflow.entities import Metric

        run, last = self._runs.get(member.name) or self._begin(member, list(values))
        if step <= last:  # it was told before a kill
            return
        now = int(1000 * time.time())
        self._client.log_batch(
            run, [Metric(key, value, now, step) for key, value in values.items()]
        )
        self._runs[member.name] = (run, step)

    def end(self, outcome: Outcome) -> None:
        """End a member's run."""
        run, _ = self._runs.pop(outcome.member.name, ("", 0))
        if run:
            for key, value in _summary(outcome).items():
                self._client.set_tag(run, f"densejax.{key}", value)
            ended = "FINISHED" if outcome.status == "DONE" else "FAILED"
            self._client.set_terminated(run, status=ended)

    def close(self) -> None:
        """Leave the runs of members that have not ended; they are resumed by their tag."""
        for run, _ in self._runs.values():
            self._client.set_terminated(run, status="KILLED")
        self._runs.clear()

    def _begin(self, member: Member, names: list[str]) -> tuple[str, int]:
        from mlflow.entities import Param

        name = _run_id(self._name, member)
        found = self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{name}'")
        if found:
            run = found[0].info.run_id
            self._client.update_run(run, status="RUNNING")
            histories = [self._client.get_metric_history(run, key) for key in names]
            last = max((metric.step for rows in histories for metric in rows), default=-1)
        else:
            tags = {_TAG: name, "mlflow.runName": f"{self._workdir.name} {member.name}"}
            run = self._client.create_run(self._experiment, tags=tags).info.run_id
            settings = _flat(self._config | _settings(member))
            texts = {key: str(value)[:_LONGEST_VALUE] for key, value in settings.items()}
            params = [Param(key, text) for key, text in texts.items()]
            for start in range(0, len(params), 100):  # at most so many at once
                self._client.log_batch(run, params=params[start : start + 100])
            last = -1
        self._runs[member.name] = (run, last)
        return run, last


def _run_id(name: str, member: Member) -> str:
    """A run's name, of characters that every service takes."""
    whole = f"{name}-{member.name}"
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in whole)


def _settings(member: Member) -> dict[str, Any]:
    return {"seed": member.seed, **dict(member.settings)}


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "reason": outcome.reason,
        "best_score": outcome.best_score,
        "best_step": outcome.best_step,
    }


def _flat(record: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found
