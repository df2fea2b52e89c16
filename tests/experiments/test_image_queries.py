"""Chen's study of queries: scores by their formulas, members alone and in company, findings."""

import gzip
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densejax.active.rounds import study as studies
from densejax.active.rounds import study_report
from densejax.active.rounds.study import Member, Query, Setting, Study, choose, one_cycle
from densejax.active.strategies.odin import log_others, odin_score
from densejax.classification.task import ImageTask
from densejax.cli import few_steps
from densejax.models.mlp import MLP
from experiments import image_queries

CLASSES = 3
SETTING = Setting(initial=6, budget=4, cycles=3, slots=3)
MARGIN, RANDOM = Query("margin"), Query("random")
EVERY = (
    RANDOM,
    MARGIN,
    Query("max_softmax"),
    Query("odin", temperature=0.1, move=0.0014),
    Query("margin", stride=4),
    Query("entropy", inverse=True),
    Query("expert"),
    Query("most_incorrect"),
)


def build(width, *, largest, expert=False):
    model = MLP(CLASSES, widths=(width,))
    return ImageTask(
        init_variables=lambda key: model.init(key, jnp.zeros((1, 5, 5, 1))),
        network=model.apply,
        classes=CLASSES,
        largest=largest,
        batch=16 if expert else 4,
        epochs=3,
        optimiser="adam",
        schedule="constant",
        learning_rate=1e-2,
        evaluation_batch=32,
    )


@pytest.fixture(scope="module")
def data():
    generator = np.random.default_rng(0)

    def pictures(number):
        labels = generator.integers(0, CLASSES, number).astype(np.int32)
        images = generator.integers(0, 150, (number, 5, 5, 1), np.uint8)
        return images + (labels * 40).astype(np.uint8)[:, None, None, None], labels

    (images, labels), (others, truth) = pictures(80), pictures(30)
    return {
        "images": images,
        "labels": labels,
        "evaluation_images": others,
        "evaluation_labels": truth,
    }


def wanted(queries, seeds=(0, 1), width=4):
    return [(query, width, seed) for query in queries for seed in seeds]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("queries")
    study = Study(build, data, SETTING, folder, say=lambda line: None)
    return study, study.run(wanted(EVERY))


# ---- one cycle ----


@pytest.mark.parametrize("temperature", [1e-4, 0.1, 1, 1000])
def test_the_doubt_of_odin_keeps_its_order_at_any_temperature(temperature):
    logits = np.random.default_rng(1).normal(0, 4, (200, 7)).astype(np.float32)
    exact = logits.astype(np.float64) / temperature
    exact -= exact.max(axis=1, keepdims=True)
    rest = np.exp(np.sort(exact, axis=1)[:, :-1] - np.sort(exact, axis=1)[:, -2:-1]).sum(axis=1)
    log_rest = np.sort(exact, axis=1)[:, -2] + np.log(rest)
    expected = log_rest - np.logaddexp(0, log_rest)
    found = np.asarray(log_others(logits / np.float32(temperature)))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(np.unique(found)) > 190


def test_log_others_of_equal_logits():
    np.testing.assert_allclose(log_others(jnp.zeros((2, 4))), np.log(3 / 4), rtol=1e-6)


def test_a_cycle_without_training_scores_the_pool_by_each_formula(data):
    task = build(4, largest=8)
    key = jax.random.key(3)
    variables = task.init(key, {})["variables"]
    x = task.prepare(jnp.asarray(data["images"]))

    def network(images):
        return task.network(variables, images)[0]

    logits = np.asarray(network(x), np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    two = np.sort(p, axis=1)[:, :-3:-1]
    odin = odin_score(network, temperature=0.5, step=0.02).function
    expected = {
        studies.NOTHING: np.zeros(len(p)),
        studies.MARGIN: two[:, 1] - two[:, 0],
        studies.ENTROPY: -(p * np.log(p)).sum(axis=1),
        studies.ERROR: -np.log(p[np.arange(len(p)), data["labels"]]),
        studies.MOVED: np.log(odin(x)),
        studies.DOUBT: np.log(odin_score(network, temperature=0.5, step=0).function(x)),
    }
    run = jax.jit(lambda member: one_cycle(task, member, data))
    for place, values in expected.items():
        member = {
            "key": jax.random.key_data(key),
            "rows": np.full(8, -1, np.int32),
            "count": np.int32(0),
            "place": np.int32(place),
            "temperature": np.float32(0.5),
            "move": np.float32(0.02),
        }
        found = run(member)
        np.testing.assert_allclose(found["scores"], values, rtol=1e-4, atol=1e-5)
    hits = np.argmax(network(task.prepare(data["evaluation_images"])), axis=1)
    assert found["accuracy"] == pytest.approx(np.mean(hits == data["evaluation_labels"]))


def test_choosing_follows_the_ranking_among_what_is_not_labelled():
    scores = np.array([5, 1, 4, 4, 0, 3, 2, 9], np.float32)
    options = {"labelled": np.array([7, 1]), "budget": 3}
    key = jax.random.key(0)
    assert choose(key, MARGIN, scores, **options).tolist() == [0, 2, 3]
    assert choose(key, replace(MARGIN, stride=2), scores, **options).tolist() == [2, 5, 4]
    assert choose(key, replace(MARGIN, inverse=True), scores, **options).tolist() == [4, 6, 5]
    drawn = choose(key, RANDOM, scores, **options)
    assert len(set(drawn)) == 3 and not set(drawn) & {1, 7}


# ---- a study ----


def test_all_members_end_with_the_labels_they_asked_for(finished, data):
    found = finished[1]
    assert [(m.query, m.width, m.seed) for m in found] == wanted(EVERY)
    for member in found:
        assert not member.failed and member.accuracy.shape == (3,)
        assert len(set(member.labelled.tolist())) == len(member.labelled) == 14
    # Members of a seed begin alike, and their first network is the same.
    for seed in (0, 1):
        same = [member for member in found if member.seed == seed]
        assert len({tuple(member.labelled[:6]) for member in same}) == 1
        assert len({member.accuracy[0] for member in same}) == 1
    assert found[0].labelled[:6].tolist() != found[1].labelled[:6].tolist()


def test_a_member_is_what_a_plain_loop_makes_of_it(finished, data):
    found = finished[1]
    member = next(m for m in found if m.query == MARGIN and m.seed == 1)
    task = build(4, largest=14)
    step = jax.jit(task.step)
    labelled = member.labelled[:6].tolist()
    for cycle in range(3):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 1)
        state = task.init(jax.random.fold_in(key, cycle), {})
        sets = np.full((1, 14), -1, np.int32)
        sets[0, : len(labelled)] = labelled
        shared = data | {"query_sets": sets, "counts": np.array([len(labelled)])}
        shared["class_weights"] = np.ones((1, CLASSES), np.float32)
        shared = jax.tree.map(jnp.asarray, shared)
        for _ in range(3 * -(-len(labelled) // 4)):
            state = step(state, shared)[0]
        accuracy = task.evaluate(state, shared)["accuracy"]
        assert member.accuracy[cycle] == pytest.approx(float(accuracy))
        logits = task.forward(state["variables"], data["images"])[0]
        two = np.sort(np.asarray(jax.nn.softmax(logits)), axis=1)[:, -2:]
        gaps = two[:, 1] - two[:, 0]
        gaps[labelled] = np.inf
        labelled += np.argsort(gaps, kind="stable")[:4].tolist()
    assert labelled[:14] == member.labelled.tolist()


def test_an_expert_query_takes_the_experts_ranking(finished):
    study, found = finished
    member = next(m for m in found if m.query.kind == "expert" and m.seed == 0)
    accuracy, scores = study.expert(4, 0)
    assert 0 <= accuracy <= 1
    values = scores.copy()
    values[member.labelled[:6]] = -np.inf
    assert member.labelled[6:10].tolist() == np.argsort(-values, kind="stable")[:4].tolist()


def test_a_member_is_the_same_alone_and_after_a_kill(finished, data, tmp_path):
    _, together = finished
    folder = tmp_path / "other"
    study = Study(build, data, SETTING, folder, say=lambda line: None)
    write, calls = studies.write_npz, []

    def dying(path, arrays):
        calls.append(path)
        if len(calls) > 4:
            raise KeyboardInterrupt
        write(path, arrays)

    pairs = [(MARGIN, 4, 1), (RANDOM, 4, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "write_npz", dying)
        with pytest.raises(KeyboardInterrupt):
            study.run(pairs)
    again = Study(build, data, SETTING, folder, say=lambda line: None).run(pairs)
    for member in again:
        twin = next(m for m in together if m.name == member.name)
        assert member.labelled.tolist() == twin.labelled.tolist()
        assert member.accuracy.tolist() == twin.accuracy.tolist()


def test_a_finished_study_runs_nothing(finished, data, tmp_path, monkeypatch):
    study, found = finished
    monkeypatch.setattr(studies, "_Program", None)
    folder = study._folder
    again = Study(build, data, SETTING, folder, say=lambda line: None).run(wanted(EVERY))
    assert [m.labelled.tolist() for m in again] == [m.labelled.tolist() for m in found]


def test_bad_input_is_refused(finished, data, tmp_path):
    study, _ = finished
    with pytest.raises(ValueError, match="86 labels in the end, of a pool of 80"):
        Study(build, data, replace(SETTING, cycles=21), tmp_path)
    with pytest.raises(ValueError, match="at least 1"):
        Study(build, data, replace(SETTING, budget=0), tmp_path)
    for name in ("members", "experts"):
        shutil.copytree(study._folder / name, tmp_path / name, dirs_exist_ok=True)
    path = tmp_path / "members" / "w4-margin-s0000.npz"
    other = Study(build, data, replace(SETTING, initial=5), tmp_path)
    with pytest.raises(ValueError, match="14 labelled samples after 3 cycles; expected 13"):
        other.load(MARGIN, 4, 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut short"):
        other.load(MARGIN, 4, 0)


# ---- the report ----


def made_up(study, gaps, seeds=6):
    """Members of which each query is above random by its gap, and a little noise."""
    generator = np.random.default_rng(0)
    curve, found = np.array([0.5, 0.6, 0.7]), []
    for query, gap in {RANDOM: 0.0, **gaps}.items():
        for seed in range(seeds):
            accuracy = curve + gap + generator.normal(0, 0.002, 3)
            found.append(Member(query, 4, seed, np.arange(14, dtype=np.int32), accuracy))
        for seed in range(seeds):
            study._experts[4, seed] = 0.9, np.zeros(80)
    return found


def test_findings_say_what_the_numbers_say(data, tmp_path):
    study = Study(build, data, SETTING, tmp_path)
    gaps = {
        MARGIN: 0.05,
        Query("max_softmax"): -0.05,
        Query("entropy"): 0.0,
        Query("odin", temperature=0.1): 0.02,
        Query("margin", stride=4): 0.1,
    }
    rows = study_report.tabulate(made_up(study, gaps), study)
    margin = rows[1]
    assert margin.area.value == pytest.approx(0.65, abs=0.005)
    # (8 labels) x (mean - first) / (expert - first), up to the noise.
    assert margin.seed_form.value == pytest.approx(8 * 0.1 / (0.9 - 0.55), rel=0.05)
    assert margin.break_even.value == 0 and np.isinf(rows[2].break_even.value)
    assert margin.against_random.p_holm < 0.01
    verdicts = {one.claim: one.verdict for one in image_queries.claims(rows)}
    assert verdicts["width 4: margin above random"] == "seen"
    assert verdicts["width 4: max_softmax above random"] == "not seen"
    assert verdicts["width 4: entropy above random"] == "not told apart"
    assert verdicts["ODIN T = 0.1 above T = 1"] == "seen"
    assert verdicts["margin-stride4 above margin"] == "above"


def test_one_seed_tells_nothing_apart(data, tmp_path):
    study = Study(build, data, SETTING, tmp_path)
    rows = study_report.tabulate(made_up(study, {MARGIN: 0.3}, seeds=1), study)
    assert {one.verdict for one in image_queries.claims(rows)} == {"not told apart"}


# ---- the experiment ----


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(head + array.tobytes()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("mnist"), np.random.default_rng(0)
    for part, size in (("train", 120), ("t10k", 40)):
        labels = np.arange(size) % 10
        images = generator.integers(0, 100, (size, 28, 28)) + 15 * labels[:, None, None]
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels.astype(np.uint8))
    return folder


def test_the_experiment_from_end_to_end(folder, tmp_path):
    config = few_steps(image_queries.Config(data="mnist", data_folder=str(folder), part="oracles"))
    summary = image_queries.run(config, tmp_path)
    assert summary.failed == 0 and len(summary.rows) == 5
    names = {path.name for path in (tmp_path / "summary").iterdir()}
    assert names == {"queries.csv", "curves.csv", "findings.md", "oracles_w512.png"}
    text = (tmp_path / "summary" / "findings.md").read_text()
    assert "expert above random" in text and "inverse_entropy above entropy" in text
    with pytest.raises(ValueError, match="budget"):
        image_queries.run(replace(config, budget=21), tmp_path)


def test_every_part_asks_for_what_the_paper_tries():
    queries = image_queries.queries
    assert [q.stride for q, _ in queries("strides")][1:] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    tried = {(q.temperature, q.move) for q, _ in queries("temperatures") if q.kind != "random"}
    assert len(tried) == 16 and (1e-4, 0.0014) in tried and (1e3, 0.0) in tried
    assert {width for _, width in queries("widths")} == {32, 16, 8, 4}
    everything = queries("all")
    assert len(everything) == len({(q.name, width) for q, width in everything})
    assert set(everything) == {pair for part in image_queries.PARTS for pair in queries(part)}


def test_a_missing_folder_is_named(tmp_path):
    config = image_queries.Config(data_folder=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz"):
        image_queries.run(config, tmp_path / "run")
