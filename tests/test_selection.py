"Selection: planted truth, invariances, naive twins, bills, and every error."

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.selection.ranking import (
    BASE_NAME,
    MIN_GAIN_OVER_BASE,
    PLAIN_PLLM,
    MAX_RANKED_PLLMS,
    PLLMLosses,
    SelectionRequest,
    Ranking,
    get_download_bytes,
    cosine_distance,
    race_by_loss,
)
from personal_llm.experiments.methods.searches import SEARCHES, TableLosses, select_with_losses
from personal_llm.selection import selection as module
from personal_llm.selection.selection import SELECTORS, Selector, select as package_select
from personal_llm.explanation.habits import Trait
from personal_llm.explanation.description import Description
from planted import me, permuted, planted, replay, said_of
from tiny import shared

METHODS = SELECTORS | SEARCHES


def select(library, explanation=None, method=None, *given, losses=None, **options):
    "Select by a method of the package, or by the name of a search; by losses from a table, if they are given."
    if losses is not None:
        method = method if isinstance(method, Selector) else METHODS[method]
        return select_with_losses(library, method, losses, **options)
    return package_select(library, explanation, SEARCHES.get(method, method), *given, **options)


RANDOM = np.random.default_rng(0)
DIRECTIONS = RANDOM.normal(size=(28, 12))
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)
STRENGTHS = RANDOM.uniform(0.6, 1.4, (28, 1))
TALK = [
    Dialogue(f"What is {w}?", f"It is {w}, of course{', dear' * i}.")
    for i, w in enumerate("tea rain bread snow music salt".split())
]


@pytest.fixture
def library(tmp_path):
    return planted(tmp_path, DIRECTIONS * STRENGTHS, sizes=range(1000, 1028))


def user(truth, share=0.5, seed=1):
    return me(share * DIRECTIONS[truth] + np.random.default_rng(seed + truth).normal(0, 0.03, 12))


@pytest.mark.parametrize("method", ["style", "l1"])
def test_planted_truth(library, method):
    "At full strength all find it; at a third only the direction does."
    full = [select(library, user(t, STRENGTHS[t, 0]), method).best == library.names[t] for t in range(28)]
    weak = [select(library, user(t, 0.3), method).best == library.names[t] for t in range(28)]
    assert all(full) and (sum(weak) <= 15 if method == "l1" else all(weak))


def test_the_choice_follows_from_what_is_printed(library):
    "Whatever the rows, losses and adapters are: only what is said counts, and its size does not."
    for t in range(28):
        for share in (0.6, 1.0, 2.0):
            mine = user(t, share * 3)
            found = select(library, SimpleNamespace(description=mine.description), "explained")
            assert found.best == library.names[t] and not found.losses and found.cost.forward == found.cost.tokens == 0
            weight = (library.rows[t] - library.rows.sum(0) / 29) * np.where(mine.row > 0.45, mine.row, 0)
            assert f"common facts: w{weight.argmax()}“ (" in found.reason, "the cards are centred on their mean"
    plain = select(library, SimpleNamespace(description=said_of(0.02 * DIRECTIONS[3])), "explained")
    assert plain.abstained and plain.best is None and plain.weights == {} and "no plain pLLM" in plain.reason
    lists = Description((Trait("lists", 9, 9, 0, 9),), (), 9)
    found = select(library, SimpleNamespace(description=lists), "explained")
    assert found.abstained and "of the user: lists" in found.reason, "a lone habit is no style"


def test_one_shared_habit_is_chance_and_two_or_a_phrase_are_a_reason(tmp_path):
    "And the reason names only what passed its test, with both numbers."
    library = planted(tmp_path, np.zeros((2, 1)), "ab")
    lists, lower = Trait("lists", 9, 10, 0, 10), Trait("lower case", 8, 10, 0, 10)
    hark = Trait("opens with “Hark”", 7, 10, 0, 10)
    noise = (Trait("noisy", 44, 100, 0, 0),)
    cards = dict(a=Description((lists, lower, hark), noise, 10), b=Description((), noise, 10))
    library.card = lambda name: dict(explanation=dict(said=cards[name].to_dict()))
    for habits, is_open in (((lists,), False), ((lower,), False), ((lists, lower), True), ((hark,), True)):
        mine = SimpleNamespace(description=Description(habits, noise, 10))
        found = select(library, mine, "explained")
        assert found.abstained != is_open and ("common facts" in found.reason) == is_open
        if is_open:
            assert found.best == "a" and "noisy" not in found.reason
            assert all(f"{habit.key} ({habit.gap:.2f}; the card +" in found.reason for habit in habits)


def test_a_word_that_the_user_has_and_the_card_has_not_is_no_reason(library):
    mine = said_of([0.9] + [0.0] * 11)
    cards = {name: said_of([-1.0] + [0.0] * 11) for name in library}
    library.card = lambda name: dict(explanation=dict(said=cards[name].to_dict()))
    found = select(library, SimpleNamespace(description=mine), "explained")
    assert found.abstained and "no card shares enough facts with the user: w0“ (" in found.reason


def test_nobody_begins_from_the_plain_pllm_where_there_is_one(tmp_path):
    names = ["a", "b", PLAIN_PLLM]
    library = planted(tmp_path, [[1, 0], [0, 1], [0.9, 0.9]], names)
    assert select(library, me([0.8, 0.1]), "explained").names == ("a", "b"), "the plain one is no candidate"
    nobody = select(library, me([0.3, 0.1]), "explained")
    assert nobody.abstained and nobody.weights == {PLAIN_PLLM: 1.0} and "the plain pLLM" in nobody.reason
    alone = planted(tmp_path, [[0, 0]], [PLAIN_PLLM])
    assert select(alone, me([0.8, 0.1]), "explained").weights == {PLAIN_PLLM: 1.0}


def test_facts_are_weighed_by_their_gaps(tmp_path):
    library = planted(tmp_path, np.zeros((2, 1)), "ab")
    fact = Trait("opens with “Hark”", 9, 10, 0, 10)
    says = dict(a=Description((fact,), (), 10), b=said_of([1.0]))
    library.card = lambda name: dict(explanation=dict(said=says[name].to_dict()))
    opens = lambda count: SimpleNamespace(description=said_of([0.5], (Trait(fact.label, count, 10, 0, 10),)))
    assert select(library, opens(8), "explained").best == "a" and select(library, opens(4), "explained").best == "b"


def test_a_topic_is_no_style(tmp_path):
    "What one speaks of is on a card too; alone it chooses nobody."
    library = planted(tmp_path, np.zeros((2, 1)), "ab")
    sea = Trait("speaks of the sea", 9, 10, 0, 10)
    library.card = lambda name: dict(explanation=dict(said=Description((), (sea,) * (name == "a"), 10).to_dict()))
    found = select(library, SimpleNamespace(description=Description((), (sea,), 10)), "explained")
    assert found.abstained and found.best is None and "speaks of the sea" in found.reason
    assert "topics are no style" in found.reason
    told = said_of([1.0], (), (sea,))
    found = select(library, SimpleNamespace(description=told), "explained")
    assert found.abstained and "w0“ (" in found.reason, "the habit is on no card, and the topic alone is no reason"
    worded = {name: said_of([1.0], (), (sea,) * (name == "a")) for name in "ab"}
    library.card = lambda name: dict(explanation=dict(said=worded[name].to_dict()))
    assert select(library, SimpleNamespace(description=told), "explained").best == "a", "beside a phrase it counts"


def test_cards_and_explanations_that_say_nothing_are_refused(library):
    with pytest.raises(InputError, match="made as published") as caught:
        select(library, SimpleNamespace(description=None), "explained")
    library.card = lambda name: dict(explanation=dict(words=["sassy"]))
    with pytest.raises(InputError, match="card of 'p000' has no description") as caught:
        select(library, user(0), "explained")
    assert "\n" not in str(caught.value) and "new explanation" in caught.value.remedy


def test_contributions_are_grouped_by_the_facts_of_the_cards(tmp_path):
    library = planted(tmp_path, [[1, 0], [0.5, 0.1], [0, 1], [0.1, 0.1], [9, 9]], [*"abcd", PLAIN_PLLM])
    names, nats = ("a", PLAIN_PLLM, "d", "b", "c"), (-0.3, -0.2, -0.1, -0.05, 0.1)
    fitted = Ranking(None, names, nats, method="fit", library=library)
    assert [row[:2] for row in fitted.group_contributions()] == [
        ("w0“", ("a", "b")),
        ("plain answers", (PLAIN_PLLM,)),
        ("no style found", ("d",)),
        ("w1“", ("c",)),
    ]
    assert sum(row[2] for row in fitted.group_contributions()) == pytest.approx(sum(nats)), "it adds up"
    facts = Trait("lower case", 6, 10, 0, 10), Trait("one sentence, median 3 words", 9, 10, 0, 10)
    sea = Trait("speaks of the sea", 10, 10, 0, 10)
    for score, label in ((1.0, "w0“, lower case, one sentence"), (0.4, "lower case, one sentence")):
        said = said_of([score], facts, (sea,) * (score < 1))
        library.card = lambda name, said=said: dict(explanation=dict(said=said.to_dict()))
        assert {row[0] for row in fitted.group_contributions()} == {label, "plain answers"}, "all habits, no topic"
    library.card = lambda name: dict(explanation={})
    assert {row[0] for row in fitted.group_contributions()} == {"a card without a description", "plain answers"}
    for other in (replace(fitted, method="match"), replace(fitted, library=None)):
        with pytest.raises(InputError, match="only a fit"):
            other.group_contributions()


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-4, 1e4), st.integers(0, 27), st.randoms())
def test_invariances(tmp_path_factory, scale, truth, random):
    "Scaling the user leaves the cosine ranking as it was, the order of the rows every ranking."
    library = planted(tmp_path_factory.mktemp("l"), DIRECTIONS * STRENGTHS)
    mine = user(truth)
    assert select(library, me(mine.row * scale), "style").names == select(library, mine, "style").names
    order = random.sample(range(28), 28)
    for method in ("style", "l1", "explained"):
        a, b = select(library, mine, method), select(permuted(library, order), mine, method)
        assert (
            a.names == b.names
            and np.allclose(a.distances, b.distances, atol=1e-6)
            and a.best == b.best
            and a.weights == pytest.approx(b.weights)
        )


def test_scale_does_count_for_l1(library):
    assert select(library, me(user(3).row * 50), "l1").names != select(library, user(3), "l1").names


def test_methods_compare_their_part_of_the_row(tmp_path):
    parts = dict(coordinates=(0, 2), stylometry=(2, 4), encoder=(4, 6), activations=(6, 8))
    rows = np.tile(np.eye(2), (1, 4))
    rows[:, 2:4] = rows[::-1, 2:4]
    library = planted(tmp_path, np.vstack([rows, [0.5, 0.5, 0, 0, 0, 0, 1, 0.1]]), ["a", "b", "c"], columns=parts)
    mine = me([1, 0, 1, 0, 0, 1, 1, 0.1])
    assert {m: select(library, mine, m).best for m in ("style", "stylometry", "encoder", "activations")} == dict(
        style="a", stylometry="b", encoder="b", activations="c"
    )


def test_abstention(library):
    mine = user(5)
    for method in ("style", "l1"):
        assert select(library, me(mine.row, 1.0), method).best is not None, "at the threshold there is something"
        weak = select(library, me(mine.row, 0.999), method)
        assert weak.best is None and weak.abstained and weak.weights == weak.losses == {} and "default" in weak.reason
        assert weak.names == select(library, mine, method).names and weak.cost.bytes_moved == 28 * 12 * 4
    library.space.threshold = 0.0
    assert select(library, me(mine.row, 0.0)).best is not None, "a space without a threshold always names somebody"


def test_the_nearest_row_is_the_whole_start(library):
    mixed = 0.4 * library.rows[3] + 0.2 * library.rows[9]
    for strength in (1, 9):
        got = select(library, me(strength * mixed))
        assert got.names[:2] == ("p003", "p009") and got.weights == {"p003": 1.0}


def test_bill_of_a_plain_selection(tmp_path):
    library = planted(
        tmp_path,
        np.hstack([DIRECTIONS, DIRECTIONS]),
        sizes=range(1000, 1028),
        columns=dict(coordinates=(0, 12), stylometry=(12, 24)),
    )
    for method in ("style", "l1", "stylometry"):
        got = select(library, me(np.tile(DIRECTIONS[5], 2)), method)
        assert (
            got.best == "p005"
            and got.cost.bytes_moved == 28 * 24 * 4 + 1005
            and (got.cost.forward, got.cost.backward, got.cost.tokens) == (0, 0, 0)
            and got.cost.seconds > 0
        )
        assert got.method == (method if method in SELECTORS else "your own")


def test_a_table_can_be_replayed_at_its_price(library):
    measured = replay(library, np.full(28, 2.0))
    bills = [select(library, None, "exhaustive", losses=measured).cost for _ in range(2)]
    assert bills[0].forward == bills[1].forward == 28 * 12 and bills[0].bytes_moved == bills[1].bytes_moved
    assert measured.cost == Cost() and measured.requested_counts == {}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    "Three random adapters of the tiny Llama, as a library."
    from personal_llm.tuning.config import TuningConfig
    from personal_llm.tuning.finetune import finetune

    folder, model = tmp_path_factory.mktemp("real"), shared("llama")
    for i in range(3):
        finetune(
            model,
            TALK[i : i + 4],
            TuningConfig(rank=2, steps=3, batch_size=4, learning_rate=2e-2, max_length=64, validation=0.0, checks=1),
            out=folder / "abc"[i],
            seed=i,
            progress=False,
        )
    return planted(folder, np.eye(3), "abc", base=model.base)


def test_match_takes_its_shortlist_from_the_gradient(real, monkeypatch):
    model = shared("llama")
    monkeypatch.setattr(module, "SHORTLIST_SIZE", 2)
    true, steep = (
        {n: PLLMLosses(model, real, TALK).mean_loss(n) for n in [BASE_NAME, *"abc"]},
        select(real, None, "gradient", model=model, dialogues=TALK),
    )
    got = select(real, None, "match", model, TALK)
    assert (
        got.method == "match"
        and set(got.losses) <= {BASE_NAME, *steep.names[:2]}
        and got.losses == pytest.approx({n: true[n] for n in got.losses})
    ), "the two steepest race, the base is measured"
    assert (
        got.best == min(steep.names[:2], key=true.get)
        and not got.abstained
        and got.names[0] == got.best
        and set(got.names) == set("abc")
    )
    assert got.weights == {got.best: 1.0}
    raced = PLLMLosses(model, real, TALK)
    left = race_by_loss(raced, steep.names[:2])
    assert set(left) | {BASE_NAME} == set(got.losses) and (got.cost.forward, got.cost.backward) == (
        2 * len(TALK) + raced.cost.forward,
        len(TALK),
    ), "one backward pass, the race, and the base"
    assert got.cost.bytes_moved == steep.cost.bytes_moved - get_download_bytes(real, steep.best) + sum(
        get_download_bytes(real, n) for n in steep.names[:2]
    )
    assert select(real, me([1, 0.1, 0.1], 0.0), "match", model, TALK).names == got.names, (
        "the losses decide, not the words"
    )
    with pytest.raises(InputError, match="needs the personal dialogues"):
        select(real, None, "match")


def test_match_abstains_when_the_gain_is_small(real, monkeypatch):
    model = shared("llama")
    for share, abstains in ((1 - MIN_GAIN_OVER_BASE + 0.001, True), (1 - MIN_GAIN_OVER_BASE - 0.001, False)):
        monkeypatch.setattr(
            PLLMLosses,
            "dialogue_losses",
            lambda self, name, count=None: np.full(
                count or self.num_dialogues, {BASE_NAME: 2.0, "a": 2.0 * share}.get(name, 2.4)
            ),
        )
        got = select(real, None, "match", model, TALK)
        assert (
            got.abstained is abstains
            and (got.best is None) is abstains
            and got.losses[BASE_NAME] == 2.0
            and (f"{MIN_GAIN_OVER_BASE:.1%}" in got.reason) is abstains
            and (got.weights == {}) is abstains
        )


def test_match_abstains_when_the_gain_is_not_sure(real, monkeypatch):
    "The same mean gain, once from every dialogue and once from a single one."
    gains = dict(even=np.full(len(TALK), 0.2), one=np.r_[0.2 * len(TALK), np.zeros(len(TALK) - 1)])
    for how, abstains in (("even", False), ("one", True)):
        monkeypatch.setattr(
            PLLMLosses,
            "dialogue_losses",
            lambda self, name, count=None: (2.0 - gains[how] * (name == "a") + 0.4 * (name in "bc"))[:count],
        )
        got = select(real, None, "match", shared("llama"), TALK)
        assert (
            got.abstained is abstains
            and got.losses[BASE_NAME] == 2.0
            and got.names[0] == "a"
            and got.losses["a"] == pytest.approx(1.8)
        )


def test_a_small_gain_over_the_plain_pllm_counts_where_it_is_even(tmp_path, monkeypatch):
    "Over the base the same gain would be too little: 5 % are asked there."
    from personal_llm.selection import selection

    names, swing = ["a", "b", PLAIN_PLLM], np.tile([0.0, 0.08], 4)
    library = planted(tmp_path, np.eye(3), names)
    order = Ranking("a", tuple(names), (0.0, 0.1, 0.2))
    monkeypatch.setattr(selection, "select_by_gradient", lambda question: order)

    def taken(gaps):
        rates = {name: np.full(8, rate) for name, rate in {BASE_NAME: 2.5, "b": 3.0, PLAIN_PLLM: 2.0}.items()}
        rates["a"] = 2.0 - gaps
        table = {name: np.stack([10 * rate, np.full(8, 10)], 1) for name, rate in rates.items()}
        found = selection.select_by_gradient_and_loss(SelectionRequest(library, losses=TableLosses(library, table)))
        assert found.names[0] == "a" and found.abstained == (found.best is None)
        return found.best

    assert taken(swing) == "a", "mean 0.04, which is 2 %, and 0.015 its standard error"
    assert taken(np.full(8, 0.011)) == "a" and taken(np.full(8, 0.009)) is None, "0.55 and 0.45 % of 2.0"
    assert taken(np.r_[np.zeros(7), 0.4]) is None, "mean 0.05, from one dialogue: its standard error is 0.05"


def test_large_libraries_name_the_nearest_and_read_from_disk(tmp_path):
    rows = np.random.default_rng(3).normal(size=(250, 8)).astype(np.float32)
    np.save(tmp_path / "index.npy", rows)
    library = planted(tmp_path, rows)
    whole = select(library, me(rows[7]))
    library.rows = np.load(tmp_path / "index.npy", mmap_mode="r", allow_pickle=False)
    got = select(library, me(rows[7]))
    everyone = cosine_distance(rows, rows[7])
    assert (
        len(got.names) == MAX_RANKED_PLLMS
        and got.names == whole.names == tuple(library.names[i] for i in np.argsort(everyone)[:MAX_RANKED_PLLMS])
        and got.best == "p007"
    )
    assert np.array_equal(library.rows, rows) and set(got.weights) <= set(got.names)


def test_json_and_text(library):
    got = select(library, None, "exhaustive", losses=replay(library, np.linspace(2, 3, 28)))
    row = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert row["best"] == got.best and row["names"] == list(got.names) and row["cost"]["forward"] == 28 * 12
    assert row["losses"]["p000"] == 2.0 and set(row) == set(Ranking.__dataclass_fields__) - {"library"}
    text = str(got)
    assert len(text.splitlines()) == 8 and got.best in text.splitlines()[0] and "336 forward" in text
    assert text.splitlines()[2].split()[0] == got.names[0]
    assert "no pLLM" in str(select(library, me(np.ones(12), 0.1)))


def at(row, value):
    row = np.array(row, np.float32)
    row[2] = value
    return row


@pytest.mark.parametrize(
    "message, call",
    [
        ("unknown method 'telepathy'.*style.*l1", lambda l, m: select(l, m, "telepathy")),
        ("method is 5; give a function", lambda l, m: package_select(l, m, 5)),
        ("needs the user's explanation", lambda l, m: select(l)),
        (
            "of space other, the library of planted",
            lambda l, m: select(l, SimpleNamespace(**vars(m) | dict(space="other"))),
        ),
        ("has shape", lambda l, m: select(l, me(m.row[:5]))),
        ("NaN", lambda l, m: select(l, me(at(m.row, np.nan)))),
        ("NaN", lambda l, m: select(l, me(at(m.row, np.inf)))),
        ("NaN", lambda l, m: select(l, me(m.row, np.nan))),
        ("rows have no encoder, only coordinates", lambda l, m: select(l, m, "encoder")),
        (
            "library is for base planted base, this model is other",
            lambda l, m: select(l, m, model=SimpleNamespace(base="other")),
        ),
        ("give both model and dialogues", lambda l, m: select(l, m, "match", dialogues=TALK)),
        (
            "3 personal dialogues.*give 1 more",
            lambda l, m: select(l, m, model=SimpleNamespace(base="planted base"), dialogues=TALK[:3]),
        ),
        (
            "0 personal dialogues.*give 4 more",
            lambda l, m: select(l, m, model=SimpleNamespace(base="planted base"), dialogues=[]),
        ),
    ],
)
def test_errors(library, message, call):
    rows = library.rows.copy()
    with pytest.raises(InputError, match=message):
        call(library, user(5))
    assert np.array_equal(library.rows, rows)


@pytest.mark.parametrize("method", ["style", "l1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_libraries(library, tmp_path, method, bad):
    library.rows[11, 4] = bad
    with pytest.raises(InputError, match="'p011' is not a finite number"):
        select(library, user(5), method)
    with pytest.raises(InputError, match="empty"):
        select(planted(tmp_path, np.zeros((0, 12))), user(5), method)


def test_a_real_library_in_a_real_space(real, tmp_path):
    "Opened anew from the disk, memory-mapped; every part of the row is compared."
    from personal_llm.explanation.explanation import Explanation
    from personal_llm.explanation.space import StyleSpace
    from personal_llm.selection.library import Library

    chance, model = np.random.default_rng(0), shared("llama")
    blocks = (3, 4, 5)
    space = StyleSpace(
        model.base,
        ("concise", "kind"),
        np.eye(2, dtype=np.float32),
        np.ones(12, np.float32),
        np.zeros((2, 12), np.float32),
        chance.normal(size=(12, 2)).astype(np.float32),
        blocks,
        1.0,
        2.0,
    )
    shifts = chance.normal(size=(3, 12)).astype(np.float32)
    said = lambda shift, strength=5.0: Explanation(
        8, "answers", space.id, residual=1.0, strength=strength, row=space.project(shift, False)
    )
    library = Library.create(tmp_path / "library", space)
    for name, shift in zip("abc", shifts):
        library.add(name, real[name].adapter, said(shift), licence="CC0-1.0", samples=4)
    library = Library(tmp_path / "library")
    for method in ("style", "l1", "stylometry", "encoder", "activations"):
        got = [select(library, said(shift), method) for shift in shifts]
        assert [r.best for r in got] == list("abc") and all(r.distances[0] == pytest.approx(0, abs=1e-5) for r in got)
        assert got[0].cost.bytes_moved == 3 * 14 * 4 + library["a"].card["bytes"]
        assert select(library, said(0.1 * shifts[1]), method).best == "b" or method == "l1"
    assert select(library, said(shifts[0], 1.9)).abstained


# One list of checks over every selector: what each must do, whatever it looks at.

CHECKED = [name for name in METHODS if name not in ("bayesian", "hyperband") or find_spec("optuna")]
SIX = (*"uvwxy", PLAIN_PLLM)
COLUMNS = dict(coordinates=(0, 4), stylometry=(4, 6), encoder=(6, 8), activations=(8, 10))


@pytest.fixture(scope="module")
def six(real, tmp_path_factory):
    "Six pLLMs with all groups of columns; three of them are the adapters of `real` again."
    folder = tmp_path_factory.mktemp("six")
    for name, source in zip(SIX, "abcabc"):
        shutil.copytree(real.path / source, folder / name)
    rows = np.random.default_rng(5).normal(size=(6, 10))
    return planted(folder, rows, SIX, base=real.base, columns=COLUMNS)


def answer(library, method, **more):
    "What a selector says with everything given."
    given = dict(model=shared("llama"), dialogues=TALK, seed=3) | more
    return select(library, me(np.linspace(-1, 1, 10)), method, **given)


@pytest.fixture(scope="module")
def answers(six):
    return {name: answer(six, name) for name in CHECKED}


@pytest.mark.parametrize("method", CHECKED)
def test_every_selector_answers_in_the_same_form(method, six, answers):
    got = answers[method]
    assert got.method == (method if method in SELECTORS else "your own") and got.library is six and got.reason
    assert set(got.names) <= set(six.names) and len(set(got.names)) == len(got.names) == len(got.distances)
    assert np.isfinite(got.distances).all() and set(got.losses) <= {BASE_NAME, *six.names}
    assert got.best is None or got.best in six.names
    assert got.abstained != bool(got.best or set(got.weights) - {PLAIN_PLLM}), "nobody: the plain one, or the base"
    assert set(got.weights) <= set(six.names)
    assert method == "fit" or 0 <= sum(got.weights.values()) <= 1 + 1e-6, "a fit's weights are free"
    json.dumps(got.to_dict(), allow_nan=False)


@pytest.mark.parametrize("method", CHECKED)
def test_every_selector_says_what_it_cost(method, six, answers):
    cost = answers[method].cost
    looks = {"model"} & set(METHODS[method].needs)
    assert (cost.forward > 0) == bool(looks) and (cost.tokens > 0) == bool(looks) and cost.seconds > 0
    assert cost.bytes_moved > 0, "at least the chosen one is downloaded, or the rows are read"


@pytest.mark.parametrize("method", CHECKED)
def test_every_selector_is_repeatable_and_blind_to_the_order(method, six, answers):
    turned = answer(permuted(six, [3, 0, 5, 1, 4, 2]), method)
    got = answers[method]
    if method == "hyperband":  # who meets whom depends on the order by name only
        assert turned.best == got.best
    assert (turned.best, turned.names) == (got.best, got.names) or np.allclose(
        sorted(turned.distances), sorted(got.distances), atol=1e-3
    ), "twins may change places"


@pytest.mark.parametrize("method", CHECKED)
def test_every_selector_refuses_what_does_not_fit(method, six, tmp_path):
    with pytest.raises(InputError, match="library is for base"):
        answer(six, method, model=SimpleNamespace(base="another"))
    with pytest.raises(InputError, match="empty"):
        answer(planted(tmp_path, np.zeros((0, 10)), columns=COLUMNS, base=six.base), method)
    with pytest.raises(InputError, match="seed"):
        answer(six, method, seed=-1)
    if METHODS[method].needs:
        with pytest.raises(InputError, match="needs"):
            select(six, None, method)


def test_a_selector_of_ones_own(six):
    seen = []

    def last(request):
        seen.append(request)
        names = sorted(request.library.names, reverse=True)
        return Ranking(names[0], tuple(names), tuple(range(len(names))), reason="by name")

    assert select(six, method=last).best == "y" and seen[-1].losses is None
    got = select(six, method=Selector(last, ("model",)), model=shared("llama"), dialogues=TALK)
    assert got.best == "y" and seen[-1].losses.num_dialogues == len(TALK)
    with pytest.raises(InputError, match="needs"):
        select(six, method=Selector(last, ("model",)))
