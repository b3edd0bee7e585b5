"Words: planted truth in a world of numbers, twins, the test that a word has to pass, files, refusals."

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.experiments.methods import vocabulary as vocabulary_module, word_classifier
from personal_llm.experiments.methods.word_classifier import (
    MAX_STANDARD_SCORE,
    NUM_TEST_SHUFFLES,
    NUM_FOLDS,
    THRESHOLD_MARGIN,
    PLAIN_WEIGHT_SHARE,
    WORD_RIDGE,
    TEXTS_PER_TEST_USER,
    WordTest,
    are_synonyms,
    word_axes,
    ridge_directions,
    axis_ends,
    assign_fold,
    exceeds_threshold,
    label_texts,
    fit_word_regression,
    mean_and_error,
    ranking_auc,
    out_of_fold_scores,
    scale_features,
    axis_scores_to_words,
    axis_targets,
    get_text_and_group,
    calibrate_word,
    unmixing_matrix,
    rejection_reason,
    balanced_weights,
)
from personal_llm.explanation.style import STYLOMETRIC_FEATURES, stylometry
from personal_llm.experiments.methods.vocabulary import (
    MAX_EXAMPLES,
    INTERVAL_ERRORS,
    WordScores,
    Vocabulary,
    select_examples,
)

WIDTH = len(STYLOMETRIC_FEATURES) + 6
PLACES = {
    "friendly": 2,
    "long": 5,
    "sad": len(STYLOMETRIC_FEATURES) + 1,
    "rare": len(STYLOMETRIC_FEATURES) + 3,
}  # where a word shows


def numbers(text: str) -> np.ndarray:
    "A text of this world is `number word+word`: noise, and two standard deviations where its words show."
    number, _, marks = text.partition(" ")
    row = np.random.default_rng(int(number)).normal(size=WIDTH)
    for mark in filter(None, marks.split("+")):
        row[PLACES[mark]] += 2
    return row


@pytest.fixture
def world(monkeypatch):
    for module in (word_classifier, vocabulary_module):
        monkeypatch.setattr(module, "text_features", lambda texts: np.stack([numbers(text) for text in texts]))


def written(marks: str, count: int, first: int) -> list:
    return [f"{i} {marks}" for i in range(first, first + count)]


PEOPLE = [written("", 40, 90_000 + 100 * i) for i in range(5)]


def taught() -> dict:
    "Most friendly texts are long; few are not."
    both, friendly, long = written("friendly+long", 200, 0), written("friendly", 110, 1000), written("long", 110, 2000)
    return dict(friendly=both + friendly, long=both + long, sad=written("sad", 200, 3000))


# ---- numbers


def test_views_are_counts_then_the_encoder():
    x = word_classifier.text_features(["A first answer.", "Another one!"])
    assert np.allclose(x[1, : len(STYLOMETRIC_FEATURES)], stylometry("Another one!")) and x.shape[1] > len(
        STYLOMETRIC_FEATURES
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), first=st.integers(1, 6))
def test_scaled_is_a_loop_over_entries(seed, first):
    rng = np.random.default_rng(seed)
    f, c, s = rng.normal(size=(3, 7)) * 9, rng.normal(size=7), rng.uniform(0.5, 2, 7)
    twin = [
        [
            max(-MAX_STANDARD_SCORE, min(MAX_STANDARD_SCORE, (f[i, j] - c[j]) / s[j]))
            / (first if j < first else 7 - first) ** 0.5
            for j in range(7)
        ]
        for i in range(3)
    ]
    assert np.allclose(scale_features(f, c, s, first), twin)
    assert (np.linalg.norm(scale_features(f, c, s, first)[:, :first], axis=1) <= MAX_STANDARD_SCORE + 1e-9).all(), (
        "a block is CLIP long at most"
    )


def test_groups_stay_together():
    assert get_text_and_group(Dialogue("Why?", "So.")) == ("So.", get_text_and_group(Dialogue("Why?", "Other."))[1])
    assert get_text_and_group("A text. ")[0] == "A text. " and {assign_fold(str(i)) for i in range(99)} == set(
        range(NUM_FOLDS)
    )


def test_labels_of_texts(world):
    found = label_texts(dict(sad=["1 sad", "2 sad", " "], long=["2 sad", "2 sad"]), [["7 ", "8 "], ["9 "]])
    assert [set(words) for words in found.words] == [{"sad"}, {"sad", "long"}, set(), set(), set()]
    assert found.people.tolist() == [-1, -1, 0, 0, 1] and found.folds[2:].tolist() == [0, 0, 1]
    assert np.allclose(found.features[1], numbers("2 sad"))


# ---- regression


def scored(regression, features):
    centre, spread, matrix = regression
    return scale_features(features, centre, spread) @ matrix


def test_each_combination_and_each_person_has_one_weight(world):
    found = label_texts(taught(), PEOPLE)
    h = balanced_weights(found.words, found.people)
    kinds = {}
    for words, person, weight in zip(found.words, found.people.tolist(), h):
        kinds[words, person] = kinds.get((words, person), 0) + weight
    plain = [weight for (_, person), weight in kinds.items() if person >= 0]
    styled = [weight for (_, person), weight in kinds.items() if person < 0]
    assert (
        np.allclose(plain, PLAIN_WEIGHT_SHARE / 5)
        and np.allclose(styled, (1 - PLAIN_WEIGHT_SHARE) / 4)
        and np.isclose(h.sum(), 1)
    )


def test_directions_are_ridge_regression():
    rng = np.random.default_rng(0)
    x, y, h = rng.normal(size=(60, 5)), rng.normal(size=(60, 2)), rng.uniform(size=60)
    root = np.sqrt(h)[:, None]
    a, b = np.vstack([root * x, WORD_RIDGE**0.5 * np.eye(5)]), np.vstack([root * y, np.zeros((5, 2))])
    assert np.allclose(ridge_directions(x, y, h), np.linalg.lstsq(a, b, rcond=None)[0])


def test_axes_and_their_ends():
    axes = word_axes(["a", "b", "c", "d"], (("d", "a"),))
    assert axes == [("d", "a"), ("b", ""), ("c", "")] and [word for word, _, _ in axis_ends(axes)] == [
        "d",
        "a",
        "b",
        "c",
    ]
    assert axis_scores_to_words(np.array([[1.0, 2.0, 3.0]]), axes).tolist() == [[1, -1, 2, 3]]
    assert axis_targets([frozenset("d"), frozenset("ab"), frozenset()], axes).tolist() == [
        [1, 0, 0],
        [-1, 1, 0],
        [0, 0, 0],
    ]


def test_axes_are_told_apart_by_a_joint_fit(world):
    "Friendly texts are mostly long, yet friendly and short ones do not count as long."
    found = label_texts(taught(), PEOPLE)
    one = fit_word_regression(found, word_axes(taught(), ()), np.ones(len(found), bool))
    scores = scored(one, np.stack([numbers(text) for text in written("friendly", 200, 50_000)])).mean(0)
    assert scores[0] > 0.5 and abs(scores[1]) < scores[0] / 3 and abs(scores[2]) < 0.1, scores
    alone = taught()["long"]
    naive = np.mean([numbers(text) for text in alone], 0)[PLACES["friendly"]]
    assert naive > 1, "who learned long by itself would take friendly for long"


def test_the_centre_counts_people_and_not_texts(world):
    people = [written("", 24, 0), written("long", 240, 500), *PEOPLE[:3]]
    found = label_texts(dict(sad=written("sad", 99, 3000)), people)
    one = fit_word_regression(found, [("sad", "")], np.ones(len(found), bool))
    assert np.allclose(one[0], np.mean([np.mean([numbers(t) for t in rows], 0) for rows in people], 0))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), axes=st.integers(1, 5))
def test_unmixing_undoes_what_neighbours_share(seed, axes):
    rng = np.random.default_rng(seed)
    y, M = (
        rng.integers(-1, 2, size=(40, axes)).astype(float),
        np.eye(axes) + rng.uniform(-0.4, 0.4, (axes, axes)) / axes,
    )
    y[:axes] = np.eye(axes)
    assert np.allclose(y @ M @ unmixing_matrix(y @ M, y, rng.uniform(0.1, 1, 40)), y)


def test_a_text_is_scored_by_those_who_have_not_read_it(world, monkeypatch):
    found, axes, real = label_texts(taught(), PEOPLE), word_axes(taught(), ()), word_classifier.fit_word_regression
    read = []
    monkeypatch.setattr(
        word_classifier, "fit_word_regression", lambda f, a, using: read.append(using) or real(f, a, using)
    )
    scores = out_of_fold_scores(found, axes)
    for fold, using in enumerate(read):
        assert not using[found.folds == fold].any() and using[found.folds != fold].all()
        assert np.allclose(scores[found.folds == fold], scored(real(found, axes, using), found.features[~using]))
    assert len(read) == NUM_FOLDS


# ---- the test of a word


def test_users_are_of_one_kind_and_texts_are_dealt_once_a_deal(world):
    found = label_texts(taught(), PEOPLE)
    users = word_classifier.make_test_users(found)
    for words, places in users:
        assert {found.words[i] for i in places} == {words} and len(places) == TEXTS_PER_TEST_USER
        assert len({int(found.folds[i]) for i in places}) == len({int(found.people[i]) for i in places}) == 1
    times = np.bincount([i for _, places in users for i in places])
    assert times.max() <= NUM_TEST_SHUFFLES and sum(not words for words, _ in users) == NUM_TEST_SHUFFLES * len(PEOPLE)


def test_score_error_and_threshold_by_hand():
    found = mean_and_error(np.array([[1.0, 0.0], [3.0, 0.0]]))
    assert np.allclose(found, [[2, 0], [1, 0]])
    limit = 2 - THRESHOLD_MARGIN
    assert exceeds_threshold(*found, np.array([limit - 0.01, 0.1])).tolist() == [True, False]
    assert not exceeds_threshold(*found, np.array([limit + 0.01, 0.1])).any()
    assert exceeds_threshold(*found[:, 0], limit - 0.01)
    scores, has = np.array([2.0, 4.0, 1.5, 0.3]), np.array([True, True, False, False])
    assert calibrate_word(scores, has) == (3.0, 0.5)
    assert calibrate_word(np.array([2.0, 4.0, -1.0, 0.3]), has) == (3.0, 0.25), "a quarter at least"
    assert calibrate_word(-scores, has)[1] == np.inf, "a word that its own texts deny is never said"


def test_a_word_is_tried_on_users_who_did_not_set_its_threshold():
    "One of the users without the word scores high: she is caught, since the others set the threshold."
    scores, has = np.array([1.0] * 6 + [0.9, 0.1, 0.1, 0.1]), np.array([True] * 6 + [False] * 4)
    exact = np.stack([scores, 0 * scores], 1)
    row = word_classifier.cross_test_word(exact, np.stack([exact, exact], 1), has)
    assert row == dict(said=7, true=6, users=6, stable=6) and rejection_reason(row) == "true of 6 of the 7 who get it"
    halves = np.stack([exact, np.where(np.arange(10) < 2, 0, 1)[:, None] * exact], 1)
    assert word_classifier.cross_test_word(exact, halves, has)["stable"] == 4, "the second half of two users is silent"


@pytest.mark.parametrize(
    "row, why",
    [
        ((9, 9, 10, 9), ""),
        ((10, 9, 10, 9), ""),
        ((10, 8, 10, 9), "true of"),
        ((4, 4, 10, 9), "found for"),
        ((9, 9, 10, 8), "both halves"),
        ((3, 3, 3, 3), "only 3 users"),
        ((0, 0, 10, 10), "found for"),
    ],
)
def test_verdicts(row, why):
    assert rejection_reason(dict(zip(("said", "true", "users", "stable"), row))).startswith(why)
    assert bool(why) == bool(rejection_reason(dict(zip(("said", "true", "users", "stable"), row))))


@settings(max_examples=50, deadline=None)
@given(a=st.lists(st.integers(-3, 3), min_size=1), b=st.lists(st.integers(-3, 3), min_size=1))
def test_order_share_is_a_loop_over_pairs(a, b):
    twin = np.mean([1.0 if x > y else 0.5 if x == y else 0.0 for x in a for y in b])
    assert np.isclose(ranking_auc(np.array(a, float), np.array(b, float)), twin)


def test_words_without_users_are_no_synonyms():
    empty = WordTest(["a", "b"], [frozenset(), frozenset("c")], np.zeros((2, 2, 2)), None, None)
    same = WordTest(["a", "b"], [frozenset("ab"), frozenset()], np.zeros((2, 2, 2)), None, None)
    assert not are_synonyms(empty, "a", "b") and are_synonyms(same, "a", "b")


# ---- the vocabulary


def test_planted_words_are_found_and_noise_is_not(world):
    "`empty` stands over texts that nothing tells from plain ones."
    known = Vocabulary.fit(taught() | dict(empty=written("", 160, 4000)), PEOPLE)
    assert (
        set(known.words) == {"friendly", "long", "sad"}
        and set(known.rejection_reasons) == {"empty"}
        and not known.merged
    )
    for row in (known.tests[word] for word in known.words):
        assert row["true"] >= 0.9 * row["said"] and row["stable"] >= 0.85 * row["users"]
    assert known.score_user(written("sad", 24, 60_000)).words == ("sad",)
    assert set(known.score_user(written("friendly+long", 24, 61_000)).words) == {"friendly", "long"}
    assert known.score_user(written("friendly", 24, 62_000)).words == ("friendly",)
    told = [known.score_user(written("", 24, 70_000 + 100 * i)) for i in range(20)]
    assert sum(bool(one.words) for one in told) <= 1 and str(told[0]) == "no style found (24 texts)"


def test_a_unit_is_what_the_words_own_texts_have(world):
    known = Vocabulary.fit(taught(), PEOPLE)
    sad = list(known.words).index("sad")
    scores = known.scores(written("sad", 300, 63_000)).mean(0)
    assert abs(scores[sad] - 1) < 0.15 and np.abs(np.delete(scores, sad)).max() < 0.15
    assert np.abs(known.scores(written("", 300, 64_000)).mean(0)).max() < 0.15


def test_opposed_words_are_two_ends_of_one_axis(world):
    texts = dict(sad=written("sad", 200, 3000), rare=written("rare", 200, 6000))
    known = Vocabulary.fit(texts, PEOPLE, (("sad", "rare"),))
    a, b = (known.matrix[:, known.words.index(word)] for word in ("sad", "rare"))
    assert np.isclose(abs(a @ b), np.linalg.norm(a) * np.linalg.norm(b), rtol=1e-4) and a @ b < 0
    assert known.score_user(written("rare", 24, 65_000)).words == ("rare",)


def test_synonyms_become_the_first_word(world):
    rows = written("sad", 300, 3000)
    known = Vocabulary.fit(dict(sad=rows[:150], gloomy=rows[150:], long=written("long", 150, 2000)), PEOPLE)
    assert known.merged == {"gloomy": "sad"} and set(known.words) == {"sad", "long"}
    same = Vocabulary.fit(dict(sad=rows[:150], gloomy=rows[:150], sorry=rows[150:]), PEOPLE)
    assert same.merged == {"gloomy": "sad", "sorry": "sad"} and same.words == ("sad",)


def test_told_is_ordered_by_clarity_and_prints_two_errors(world):
    known = Vocabulary.fit(taught(), PEOPLE)
    texts = written("friendly+long", 24, 61_000)
    told = known.score_user(texts)
    score, error, threshold = told.scores["long"]
    column = known.scores(texts)[:, known.words.index("long")]
    assert np.isclose(score, column.mean(), atol=1e-5) and np.isclose(error, column.std(ddof=1) / 24**0.5, atol=1e-5)
    assert f"long ({score:.2f}, {score - INTERVAL_ERRORS * error:.2f} to {score + INTERVAL_ERRORS * error:.2f})" in str(
        told
    )
    turned = replace(known, clarity=np.where([word == told.words[-1] for word in known.words], 100, 1))
    assert turned.score_user(texts).words == told.words[::-1] and str(told).endswith("from 24 texts")


def test_a_centre_of_ones_own(world):
    known = Vocabulary.fit(taught(), PEOPLE)
    moved = known.recentre([written("sad", 300, 66_000), written("sad", 50, 67_000)])
    assert not moved.score_user(written("sad", 24, 60_000)).words and moved.words == known.words
    assert np.allclose(
        moved.scores(["5 sad"]) - moved.scores(["6 sad"]), known.scores(["5 sad"]) - known.scores(["6 sad"]), atol=0.6
    )
    for nobody in ([], [[]], [[" "]]):
        with pytest.raises(InputError, match="plain person"):
            known.recentre(nobody)


def test_what_cannot_teach_is_refused(world):
    for texts, people, opposed, message in (
        (dict(sad=written("sad", 95, 0)), PEOPLE, (), "word 'sad': 95 different texts"),
        (dict(sad=["1 sad"] * 400), PEOPLE, (), "1 different texts"),
        (taught(), PEOPLE[:3], (), "3 plain people"),
        (taught(), [rows[:5] for rows in PEOPLE], (), "0 plain people"),
        (taught(), PEOPLE, (("sad", "glad"),), "'glad' has no texts"),
        (taught(), PEOPLE, (("friendly", "long"),), "with 'friendly' and with 'long'"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            Vocabulary.fit(texts, people, opposed)
        assert "\n" not in str(caught.value) and caught.value.remedy


def test_too_few_texts_are_not_told(world):
    known = Vocabulary.fit(taught(), PEOPLE)
    with pytest.raises(InputError, match="give 3 more"):
        known.score_user([*written("sad", 5, 0), " "])
    assert known.score_user(written("sad", 8, 0)).samples == 8


# ---- files


def test_a_vocabulary_comes_back_and_damage_is_refused(world, tmp_path):
    known = Vocabulary.fit(taught(), PEOPLE)
    known.save(tmp_path)
    back = Vocabulary.load(tmp_path)
    for name in ("words", "tests", "rejection_reasons", "merged", "encoder", "examples", "opposite_words"):
        assert getattr(back, name) == getattr(known, name), name
    assert all(
        np.array_equal(getattr(back, name), getattr(known, name))
        for name in ("centre", "spread", "matrix", "thresholds", "clarity")
    )
    card, arrays = tmp_path / "words.json", tmp_path / "words.safetensors"
    whole = card.read_text(), arrays.read_bytes()
    fields = json.loads(whole[0])
    assert {"left_out", "unsaid", "opposed"} <= set(fields), "the file keeps its keys"
    damages = ["{", "[]", json.dumps(fields | dict(more=1)), json.dumps(fields | dict(words=["one"]))]
    damages += [json.dumps(fields | dict(examples=wrong)) for wrong in (7, [7], [["friendly"]])]
    damages += [json.dumps({k: v for k, v in fields.items() if k != name}) for name in ("words", "tests")]
    for text in (*damages, json.dumps(fields | dict(encoder="other"))):
        card.write_text(text)
        with pytest.raises(InputError) as caught:
            Vocabulary.load(tmp_path)
        assert "\n" not in str(caught.value) and caught.value.remedy
    card.write_text(whole[0])
    arrays.write_bytes(whole[1][:-9])
    with pytest.raises(InputError, match="damaged"):
        Vocabulary.load(tmp_path)
    with pytest.raises(InputError, match="no words.json"):
        Vocabulary.load(tmp_path / "nowhere")


def test_a_vocabulary_keeps_as_many_examples_of_each_kind():
    found = select_examples(taught(), PEOPLE)
    kinds = [words for words, _, _ in found]
    sizes = {kind: kinds.count(kind) for kind in set(kinds)}
    assert set(sizes) == {("friendly",), ("friendly", "long"), ("long",), ("sad",), ()} and len(found) <= MAX_EXAMPLES
    assert set(sizes.values()) == {MAX_EXAMPLES // 5} and len({answer for _, _, answer in found}) == len(found)
    assert select_examples(dict(sad=[Dialogue("Why?", "0 sad")]), [])[0] == (("sad",), "Why?", "0 sad")


@given(st.floats(0.05, 0.3), st.floats(0.05, 0.3), st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_first_word_is_named_only_where_no_other_comes_near(error, other, below):
    told = WordScores(("sad", "long"), {"sad": (1.0, error, 0.3), "long": (1 - below, other, 0.3)}, 24)
    assert told.clearest_word == ("sad" if below >= np.hypot(error, other) else "")
    assert WordScores((), told.scores, 24).clearest_word == "", "nobody is first of nothing"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 9), count=st.integers(1, 4))
def test_kind_distance_is_a_loop_over_kinds(seed, n, count):
    "And it is unbiased: the squared distance of means, less the variance that the mean of n texts has."
    rng = np.random.default_rng(seed)
    texts, kinds = rng.normal(size=(n, 3)), rng.normal(size=(count, 3))
    mean = [sum(row[j] for row in texts) / n for j in range(3)]
    chance = sum((row[j] - mean[j]) ** 2 for row in texts for j in range(3)) / (n * (n - 1))
    nearest = min(sum((mean[j] - kind[j]) ** 2 for j in range(3)) for kind in kinds)
    assert np.isclose(vocabulary_module.kind_distance(texts, kinds), max(nearest - chance, 0) ** 0.5)
    assert vocabulary_module.kind_distance(texts, ()) == 0


def test_texts_of_another_kind_get_no_words(world, monkeypatch):
    "They score high on a word, and are like no text that taught it."
    vocabulary = Vocabulary.fit(taught(), PEOPLE)
    assert len(vocabulary.kinds) == 4 + len(PEOPLE), "long and friendly, each alone, sad, and the people"
    own = vocabulary.score_user(written("sad", 24, 50_000))
    assert own.words == ("sad",) and own.is_of_kind
    monkeypatch.setitem(globals(), "numbers", lambda text, known=numbers: known(text) + np.linspace(-2, 2, WIDTH))
    for count in (8, 24, 64):
        other = vocabulary.score_user(written("sad", count, 60_000))
        assert not other.is_of_kind and other.words == () and other.scores == {} and "another kind" in str(other)
    trusted = vocabulary.recentre([written("", 40, 70_000)])
    assert trusted.score_user(written("sad", 24, 60_000)).words == ("sad",), "whoever gives plain people vouches"


def test_a_vocabulary_without_kinds_tests_none(world):
    vocabulary = replace(Vocabulary.fit(taught(), PEOPLE), kinds=())
    assert vocabulary.score_user(written("sad", 24, 50_000)).is_of_kind
