"""What a sweep of contrastive learning leaves: encoders, their accuracy by neighbours, curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densejax.classification.contrastive import ContrastiveTask
from densejax.classification.neighbours import knn_accuracy
from densejax.classification.pretrained import save_encoder
from densejax.data.vision import LabelledImages
from densejax.io import write_csv
from densejax.plots.curves import learning_curves
from densejax.training.checkpoint import restore_tree
from densejax.training.folders import Outcome, read_curves
from densejax.typing import Array, Batch


@dataclass(frozen=True)
class Summary:
    """What a sweep came to.

    Attributes:
      outcomes: of all members.
      test_knn: float [k], test accuracy of the neighbours by each left encoder; nan where a member
        failed.
      encoders: folders that ``--pretrained`` takes, of the members that ended well.
      files: table and pictures.
    """

    outcomes: tuple[Outcome, ...]
    test_knn: np.ndarray
    encoders: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def failed(self) -> int:
        """Members that failed."""
        return sum(outcome.status == "FAILED" for outcome in self.outcomes)


def contrastive_data(images: Array, labels: Array, *, evaluation_share: float) -> Batch:
    """What the instances of a ``ContrastiveTask`` share: all pictures, and who judges whom.

    Args:
      images: [n, y, x, 3] uint8, all of them trained on.
      labels: [n] int32, which training never sees.
      evaluation_share: of the pictures, judged by the others; drawn at random, the same each time.

    Returns:
      ``images``, ``bank_rows``, ``bank_labels``, ``evaluation_rows``, ``evaluation_labels``.

    Raises:
      ValueError: the share leaves none on either side.
    """
    n = len(images)
    evaluation = max(round(evaluation_share * n), 1)
    if not 0 < evaluation_share < 1 or evaluation >= n:
        raise ValueError(
            f"evaluation_share is {evaluation_share} of {n} pictures; expected some of them"
        )
    order = np.asarray(jax.random.permutation(jax.random.key(99), n), np.int32)
    rows, bank = np.sort(order[:evaluation]), np.sort(order[evaluation:])
    return {
        "images": images,
        "bank_rows": bank,
        "bank_labels": np.asarray(labels)[bank],
        "evaluation_rows": rows,
        "evaluation_labels": np.asarray(labels)[rows],
    }


def summarise_encoders(
    outcomes: Sequence[Outcome],
    task: ContrastiveTask,
    train: LabelledImages,
    test: LabelledImages,
    *,
    keep: str,
    folder: Path,
    title: str,
) -> Summary:
    """Leave the encoders in their members' folders, judge them, write table and curves.

    Args:
      outcomes: of a sweep.
      task: what was trained.
      train: the neighbours.
      test: whom they judge; neither training nor ranking has seen it.
      keep: which parameters are left, ``last`` or ``best``.
      folder: of the table and the pictures; made if absent.
      title: of the pictures.
    """
    template = task.parameters(jax.eval_shape(lambda: task.init(jax.random.key(0), {})))

    @jax.jit
    def judge(variables: Any, bank: Any, queries: Any) -> jax.Array:
        features = [task.features(variables, images) for images in (queries, bank)]
        options = {"classes": task.classes, "neighbours": task.neighbours}
        return knn_accuracy(
            features[0], jnp.asarray(test.labels), features[1], jnp.asarray(train.labels), **options
        )

    scores, encoders = [], []
    for outcome in outcomes:
        score = float("nan")
        if outcome.status == "DONE":
            variables = restore_tree(outcome.folder / keep, template)["encoder"]
            save_encoder(outcome.folder, task.encoder, variables)
            encoders.append(outcome.folder)
            score = float(judge(variables, train.images, test.images))
        scores.append(score)
        name = outcome.member.name
        print(f"seed {name}  {outcome.status}  test kNN {score:.4f}  {outcome.folder}")
    folder.mkdir(exist_ok=True)
    head = ("member", "status", "steps", "best_knn", "best_step", "test_knn")
    rows = [
        (o.member.name, o.status, o.step, o.best_score, o.best_step, score)
        for o, score in zip(outcomes, scores, strict=True)
    ]
    files = [write_csv(folder / "scores.csv", head, rows)]
    for name, label in (("loss", "contrastive loss"), ("knn", "nearest neighbours: accuracy")):
        steps, values = read_curves(outcomes, name)
        if np.isfinite(values).any():
            path = folder / f"{name}.png"
            learning_curves(steps, values, path=path, label=label, title=title)
            files.append(path)
    return Summary(tuple(outcomes), np.array(scores), tuple(encoders), tuple(files))
