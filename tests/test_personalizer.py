"The whole loop on a fake model: budgets, saving, interrupts, forgetting. No torch needed."

import hashlib, json, os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.device import personalizer
from personal_llm.sdss.policies import POLICIES
from personal_llm.sdss.buffer import Buffer
from personal_llm.base.core import Cost, Dialogue, InputError, generator
from personal_llm.base.models import Reading
from personal_llm.device.personalizer import Personalizer, ask_at_terminal
from personal_llm.device.store import load_personalizer
from personal_llm.sdss.scoring import Lexicons
from personal_llm.start.ranking import Ranking
from personal_llm.base.adapters import Adapter
from personal_llm.tuning.config import TuningConfig

LEXICONS = Lexicons(dict(drug=["pill", "pain"], food=["tea", "bread"]))
TALK = [
    Dialogue(
        f"{i} " + " ".join(["pill", "tea", "pain", "bread", "so", "and"][(i * 7 + k) % 6] for k in range(i % 5 + 1)),
        f"answer {i}",
        time=i,
    )
    for i in range(40)
]


class Fake:
    "Hidden states drawn from the text and from what is adapted; answers every rewriting prompt with other words."

    name, base, max_length = "fake", "base", 256
    tokenizer = staticmethod(lambda text: dict(input_ids=text.split()))

    def __init__(self):
        self.active_adapter, self.cost = self.base, Cost()

    @contextmanager
    def using(self, adapter):
        before = self.active_adapter
        if adapter is not None:
            self.active_adapter = f"{self.base}+{hashlib.sha1((Path(adapter.path) / 'adapter_model.safetensors').read_bytes()).hexdigest()[:8]}"
        try:
            yield self
        finally:
            self.active_adapter = before

    def read(self, dialogues, batch_size=16):
        self.cost.forward += len(dialogues)
        return [
            Reading(
                generator(0, d.text, self.active_adapter).normal(size=(len(d.text.split()), 4)).astype(np.float32),
                3.0,
                2,
            )
            for d in dialogues
        ]

    def generate(self, prompts, **settings):
        return [f"[other words for {p.split(chr(10), 1)[1]}]" for p in prompts]


def fake_finetune(model, dialogues, config, start, out, seed, progress=True):
    import tempfile

    out = Path(out or tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    folder = getattr(start, "path", start)
    begun = hashlib.sha1((Path(folder) / "adapter_model.safetensors").read_bytes()).hexdigest() if start else None
    (out / "adapter_config.json").write_text(json.dumps(dict(start=str(folder), begun=begun)))
    (out / "adapter_model.safetensors").write_text(json.dumps([[d.id for d in dialogues], begun, seed]))
    adapter = Adapter(out, model.base, tuple(d.id for d in dialogues), Cost(), (), 2.0, 1.0)
    (out / "adapter.json").write_text(
        json.dumps(
            dict(
                base=model.base,
                parents=adapter.parents,
                cost=Cost().to_dict(),
                history=[],
                start_loss=2.0,
                best_loss=1.0,
            )
        )
    )
    return adapter


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(personalizer, "finetune", fake_finetune)


class User:
    "Corrects every other dialogue, or none, and remembers what it was asked."

    def __init__(self, corrects=lambda d: True):
        self.asked, self.corrects = [], corrects

    def __call__(self, dialogue):
        self.asked.append(dialogue.id)
        return f"better: {dialogue.response}" if self.corrects(dialogue) else None


def start(folder=None, capacity=4, policy="fifo", user=None, **settings):
    return Personalizer(
        Fake(),
        Buffer(capacity, policy),
        annotator=user,
        lexicons=LEXICONS,
        folder=folder,
        **dict(synthetic=1) | settings,
    )


def watch(me, dialogues):
    return me.observe_all(dialogues, progress=False)


def state(me):
    "All that must survive."
    return (
        list(me.buffer.log),
        me.buffer.dialogues,
        [c.scores.model for c in me.buffer.entries],
        me.buffer.metrics.tolist(),
        me.buffer.random.bit_generator.state,
        list(me.curve),
        sorted(me.asked),
        me.cost.requests,
        me.adapter and (str(me.adapter.path), me.adapter.parents),
    )


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    capacity=st.integers(1, 6),
    when=st.sampled_from(["freeze", "arrival"]),
    requests=st.none() | st.integers(0, 9),
    every=st.none() | st.integers(1, 12),
    blocks=st.lists(st.integers(0, 9), max_size=4),
    odd=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_requests_never_exceed_the_budget(policy, capacity, when, requests, every, blocks, odd):
    "And nobody is asked twice about the same dialogue, nor again about a corrected answer."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "finetune", fake_finetune)
        user = User(lambda d: odd and len(d.prompt) % 2)
        me, place = start(None, capacity, policy, user, ask=when, requests=requests, every=every), 0
        for n in blocks:
            watch(me, TALK[place : place + n])
            place += n
            if len(me.buffer):
                before = len(user.asked)
                me.finetune(progress=False)
                assert when == "arrival" or len(user.asked) - before <= capacity
    assert len(user.asked) == me.cost.requests <= (requests if requests is not None else place)
    assert len(set(user.asked)) == len(user.asked) and set(user.asked) <= {d.id for d in TALK}
    assert me.buffer.seen == len(me.buffer.log) == place
    assert [c["requests"] for c in me.curve] == sorted(c["requests"] for c in me.curve)


@given(
    every=st.integers(1, 15),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    policy=st.sampled_from(["sdss", "reservoir"]),
)
@settings(max_examples=15, deadline=None)
def test_every_n_at_the_right_places(every, cuts, policy):
    "However the stream is handed over, fine-tunes come after every N-th dialogue and the log is the same."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "finetune", fake_finetune)
        whole, parts = (start(None, 5, policy, every=every) for _ in range(2))
        watch(whole, TALK)
        edges = sorted({0, *cuts, 40})
        for a, b in zip(edges, edges[1:]):
            if b - a == 1:
                parts.observe(TALK[a])
            else:
                watch(parts, TALK[a:b])
    assert [c["seen"] for c in whole.curve] == list(range(every, 41, every)) == [c["seen"] for c in parts.curve]
    assert whole.buffer.log == parts.buffer.log and whole.buffer.dialogues == parts.buffer.dialogues
    assert all(c.scores.model == whole.buffer.entries[0].scores.model for c in whole.buffer.entries)


def test_the_scripts_policy_clears_and_goes_on():
    me = start(policy="sdss-scripts")
    watch(me, TALK[:10])
    me.finetune(progress=False)
    assert len(me.buffer) == 0 and me.curve[0]["kept"] == 4
    assert (
        all(d.reason == "a bin was free" for d in watch(me, TALK[10:14]))
        and me.buffer.entries[0].scores.model != "base"
    )
    with pytest.raises(InputError, match="empty"):
        start().finetune()


def test_asking():
    user = User(lambda d: d.id != TALK[1].id)
    me = start(user=user, requests=3)
    watch(me, TALK[:4])
    me.finetune(progress=False)
    assert user.asked == [d.id for d in TALK[:3]], "the oldest first"
    kept = me.buffer.dialogues
    assert (
        kept[0].response == "better: answer 0"
        and kept[0].parents == (TALK[0].id,)
        and kept[0].origin == "annotated"
        and kept[1] == TALK[1]
        and kept[3] == TALK[3]
    )
    me.finetune(progress=False)
    assert len(user.asked) == 3 and me.synthesis.dialogues[0].response == "better: answer 0"
    assert ask_at_terminal(TALK[0], read=lambda _: "\t") is None


def test_fine_tunes_go_on_from_the_last(tmp_path):
    me = start(tmp_path)
    watch(me, TALK[:5])
    first = me.finetune(progress=False)
    second = me.finetune(progress=False)
    third = me.finetune(start=None, progress=False)
    begun = [json.loads((Path(a.path) / "adapter_config.json").read_text())["start"] for a in (first, second, third)]
    assert begun == ["None", str(first.path), "None"] and len({a.path for a in (first, second, third)}) == 3


# The warm start: only the order and the choice are this module's, so the stages are stand-ins


class Shelf:
    "A library of three adapters, each a file that holds its name."

    base, space = "base", SimpleNamespace(id="planted")

    def __init__(self, folder):
        self.folder = folder
        for name in "abc":
            (folder / name).mkdir(parents=True)
            (folder / name / "adapter_model.safetensors").write_text(name)

    def __getitem__(self, name):
        return SimpleNamespace(adapter=self.folder / name)


class Planted:
    "Stand-ins for explain, select, refine_weights and merge that write down what they were given."

    def __init__(self, patch, best="a", weights=None, mixture=9.0, reason="nearest of 3"):
        self.calls = []
        self.best, self.weights, self.mixture, self.reason = best, weights or {}, mixture, reason
        for name in ("explain", "select", "refine_weights", "merge"):
            patch.setattr(personalizer, name, getattr(self, name))
        patch.setattr(personalizer, "Library", Shelf)
        real = personalizer.synthesize
        patch.setattr(
            personalizer,
            "synthesize",
            lambda *given, **named: self.calls.append(("synthesize",)) or real(*given, **named),
        )

    def explain(self, model, dialogues, space, seed):
        self.calls.append(("explain", [d.response for d in dialogues], space.id, model.active_adapter))
        if len(dialogues) < 3:
            raise InputError("give more")

        class Said(SimpleNamespace):
            def __str__(self):
                return "mostly *concise*"

            def to_dict(self):
                return dict(words=["concise"])

        return Said(cost=Cost(seconds=100, tokens=7))

    def select(self, library, model, dialogues, seed):
        self.calls.append(("select", len(dialogues)))
        return Ranking(
            self.best,
            ("a", "b", "c"),
            (0.1, 0.2, 0.3),
            self.weights,
            self.best is None,
            self.reason,
            Cost(seconds=20, forward=3),
            "style",
            {"a": 2.0, "b": 2.5},
        )

    def refine_weights(self, model, library, weights, dialogues, evaluations):
        self.calls.append(("loss", evaluations))
        return weights, [(weights, self.mixture)], Cost(seconds=3, forward=5)

    def merge(self, library, weights, out):
        self.calls.append(("merge", weights))
        (Path(out) / "adapter_model.safetensors").write_text("+".join(weights))
        return Adapter(Path(out), "base", tuple(weights), Cost())


def begun_from(adapter):
    return json.loads((Path(adapter.path) / "adapter_config.json").read_text())["begun"]


def hashed(text):
    return hashlib.sha1(text.encode()).hexdigest()


MIXTURE = dict(a=0.5, b=0.3)


@pytest.mark.parametrize(
    "planted, begun, weights, steps",
    [
        (dict(), "a", dict(a=1.0), "explain select synthesize"),
        (dict(weights=dict(a=1.0)), "a", dict(a=1.0), "explain select synthesize"),
        (dict(weights=MIXTURE, mixture=1.9), "a+b", MIXTURE, "explain select loss merge synthesize"),
        (dict(weights=MIXTURE, mixture=2.0), "a", dict(a=1.0), "explain select loss synthesize"),
        (dict(weights=dict(a=0.4), mixture=1.9), "a", dict(a=0.4), "explain select loss merge synthesize"),
        (dict(best=None, reason="default text"), None, {}, "explain select synthesize"),
    ],
    ids=["single", "single by weight", "mixture", "a tie is no gain", "half of one", "nobody"],
)
def test_a_warm_start(planted, begun, weights, steps, monkeypatch, tmp_path):
    stages = Planted(monkeypatch, **planted)
    me = start(tmp_path / "me", user=User(), start=Shelf(tmp_path / "shelf"))
    watch(me, TALK[:6])
    first = me.finetune(progress=False)
    assert begun_from(first) == (begun and hashed(begun)) and " ".join(c[0] for c in stages.calls) == steps
    assert stages.calls[0] == ("explain", [f"better: answer {i}" for i in (4, 5, 2, 3)], "planted", "base"), (
        "the buffer, corrected, by the bare model"
    )
    assert stages.calls[1] == ("select", 4) and all(c == ("loss", 1) for c in stages.calls if c[0] == "loss")
    warm = me.curve[0]["warm"]
    assert (
        warm["weights"] == weights
        and warm["ranking"]["names"] == ["a", "b", "c"]
        and warm["explanation"] == dict(words=["concise"])
    )
    assert me.status()["warm"] == dict(
        weights=weights, style="mostly *concise*", reason=planted.get("reason", "nearest of 3")
    )
    measured = 3 if "loss" in steps else 0
    assert (
        120 + measured <= me.curve[0]["seconds"] < 121 + measured
        and me.cost.forward >= 3 + measured
        and me.cost.tokens >= 7
    ), "what the choice cost counts"
    stages.calls.clear()
    second = me.finetune(progress=False)
    assert begun_from(second) == hashlib.sha1(
        (Path(first.path) / "adapter_model.safetensors").read_bytes()
    ).hexdigest() and stages.calls == [("synthesize",)], "only the first one is warm"
    assert me.curve[1]["warm"] is None and me.status()["warm"]["weights"] == weights
    me.save()
    again = load_personalizer(tmp_path / "me", Fake(), None, LEXICONS)
    assert state(again) == state(me) and again.status()["warm"] == me.status()["warm"]
    assert "answer" not in json.dumps(me.status())


def test_a_warm_start_on_request_and_after_forgetting(monkeypatch, tmp_path):
    stages, shelf = Planted(monkeypatch), Shelf(tmp_path / "shelf")
    me = start(tmp_path / "me")
    watch(me, TALK[:4])
    me.finetune(progress=False)
    assert me.status()["warm"] is None and stages.calls == [("synthesize",)] and me.curve[0]["warm"] is None
    assert begun_from(me.finetune(start=shelf, progress=False)) == hashed("a") and stages.calls[1][3] == "base", (
        "the adapter of before is not adapted"
    )
    assert begun_from(me.finetune(start=tmp_path / "shelf" / "b", progress=False)) == hashed("b")
    victim = me.curve[0]["parents"][0]
    me.save()
    me.forget({victim})
    assert me.status()["warm"] is None and "concise" not in (tmp_path / "me" / "state.json").read_text(), (
        "what was explained from it goes too"
    )
    again = load_personalizer(tmp_path / "me", Fake(), None, LEXICONS, start=shelf)
    assert begun_from(again.finetune(progress=False)) == hashed("a"), "nothing is left: warm again"


def test_every_with_a_library_is_warm_once(monkeypatch, tmp_path):
    stages = Planted(monkeypatch)
    me = start(tmp_path / "me", every=4, start=Shelf(tmp_path / "shelf"))
    watch(me, TALK[:12])
    assert [c[0] for c in stages.calls].count("explain") == 1 and [bool(c["warm"]) for c in me.curve] == [
        True,
        False,
        False,
    ]


def test_a_warm_start_that_fails_changes_nothing(monkeypatch, tmp_path):
    stages, shelf = Planted(monkeypatch), Shelf(tmp_path / "shelf")
    me = start(tmp_path / "me", start=shelf)
    watch(me, TALK[:2])
    before = state(me)
    with pytest.raises(InputError, match="give more"):
        me.finetune(progress=False)
    assert state(me) == before and not (tmp_path / "me").exists()
    shelf.base = "other"
    with pytest.raises(InputError, match="library is for base other, this model is base"):
        start(start=shelf)


def test_saved_and_loaded_goes_on_the_same_way(tmp_path):
    for policy in ("sdss", "reservoir", "kcenter"):
        me = start(
            tmp_path / policy,
            policy=policy,
            user=User(),
            every=9,
            requests=7,
            ask="arrival",
            mode="both",
            seed=3,
            config=TuningConfig(steps=2),
        )
        watch(me, TALK[:14])
        me.save()
        again = load_personalizer(tmp_path / policy, Fake(), User(), LEXICONS)
        assert (
            state(again) == state(me)
            and again.config == me.config
            and (again.every, again.when, again.requests, again.mode, again.seed, again.synthetic)
            == (9, "arrival", 7, "both", 3, 1)
        )
        for one in (me, again):
            watch(one, TALK[14:])
        assert state(again) == state(me) and again.status()["requests"] == me.status()["requests"]
        assert not any("answer" in str(value) for value in me.status().values()), "not a word of what was said"


def more(me):
    watch(me, TALK[10:16])


def forget_kept(me):
    me.forget({me.buffer.dialogues[1].id})


def tune(me):
    me.finetune(progress=False)


def ask_only(me):
    me._ask_about(0)


def forget_learned(me):
    me.forget({me.curve[0]["parents"][0]})


@pytest.mark.parametrize("change", [more, tune, ask_only, forget_kept, forget_learned])
@pytest.mark.parametrize("operation", ["replace", "fsync", "unlink"])
def test_an_interrupt_at_any_write_leaves_the_old_state_or_the_new(change, operation, monkeypatch, tmp_path):
    "The power fails at the k-th operation on the disk, for all k; what loads is what was saved before, or what was to be saved."
    user = User(lambda d: d.time > 2)
    for k in range(1, 30):
        folder = tmp_path / str(k)
        me = start(folder, user=user, seed=1)
        watch(me, TALK[:8])
        if change is forget_learned:
            me.finetune(progress=False)
        me.save()
        old, calls, real = state(me), [], getattr(os, operation)
        change(me)
        new = state(me)
        assert old != new

        def fail(*a, **kw):
            calls.append(a)
            if len(calls) == k:
                raise KeyboardInterrupt
            return real(*a, **kw)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, fail)
            try:
                me.save()
            except KeyboardInterrupt:
                pass
        found = state(load_personalizer(folder, Fake(), user, LEXICONS))
        assert found in (old, new), f"{change.__name__}: a mixture after {operation} {k}"
        if len(calls) < k:
            assert found == new
            break
        me.save()
        assert state(load_personalizer(folder, Fake(), user, LEXICONS)) == new, "the next save mends it"


def test_what_is_forgotten_is_gone_at_once(tmp_path):
    "A crash right after forgetting, before anybody saves: the folder loads, without the forgotten dialogue's adapter."
    me = start(tmp_path)
    watch(me, TALK[:8])
    me.finetune(progress=False)
    me.save()
    me.forget({me.curve[0]["parents"][0]})
    again = load_personalizer(tmp_path, Fake(), None, LEXICONS)
    assert again.adapter is None and state(again) == state(me)


@pytest.mark.parametrize("corrects", [False, True])
@given(
    capacity=st.integers(1, 5),
    policy=st.sampled_from(["fifo", "reservoir", "sdss-scripts"]),
    when=st.sampled_from(["freeze", "arrival"]),
    tunes=st.lists(st.integers(1, 8), min_size=1, max_size=4),
    who=st.integers(0, 39),
)
@settings(max_examples=40, deadline=None)
def test_forgetting_removes_descendants(corrects, capacity, policy, when, tunes, who):
    "Every adapter that learned from the dialogue, its corrected answer or a synthetic child goes, with those that went on from it; others stay."
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(personalizer, "finetune", fake_finetune)
        me, place, family = start(folder, capacity, policy, User(lambda d: corrects), ask=when), 0, {}
        for n in tunes:
            watch(me, TALK[place : place + n])
            place += n
            entries = [d for d in me.buffer.dialogues]
            me.finetune(progress=False)
            family[str(me.adapter.path)] = {i for d in entries for i in (d.id, *d.parents)}
        victim = TALK[who % place].id
        first = next((i for i, ids in enumerate(family.values()) if victim in ids), len(tunes))
        removed = me.forget({victim})
        gone = list(family)[first:]
        assert (
            removed["adapters"] == gone
            and not any(Path(p).exists() for p in gone)
            and all(Path(p).exists() for p in list(family)[:first])
        )
        assert len(me.curve) == first and str(me.adapter and me.adapter.path) == (
            list(family)[first - 1] if first else "None"
        )
        assert not any(victim in (d.id, *d.parents) for d in me.buffer.dialogues)
        with me.model.using(me.adapter):
            assert {c.scores.model for c in me.buffer.entries} <= {me.model.active_adapter}
        assert me.buffer.seen == place
        assert me.forget({victim}) == dict(dialogues=0, adapters=[])
        me.save()
        text = next(d.response for d in TALK if d.id == victim).encode()
        assert not any(
            text + b'"' in p.read_bytes() or text + b'\\"' in p.read_bytes()
            for p in Path(folder).rglob("*")
            if p.is_file()
        ), "its words are on the disk"
        if len(tunes) * 8 < 40:
            watch(me, TALK[place:])
            me.finetune(progress=False)


def test_forgetting_leaves_the_order_of_the_others():
    me = start(capacity=4, policy="fifo")
    watch(me, TALK[:6])  # bins hold 4, 5, 2, 3
    me.forget({TALK[3].id})
    assert [d.evicted for d in watch(me, TALK[6:9])] == ["", TALK[2].id, TALK[4].id], "the oldest leaves"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"buffer": "x"}',
        '{"base": "base", "settings": {}, "buffer": "none"}',
        '{"base": "other"}',
    ],
)
def test_damaged_states_are_refused(content, tmp_path):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(InputError):
        load_personalizer(tmp_path, Fake(), None, LEXICONS)


def test_wrong_settings(tmp_path):
    me = start()
    with pytest.raises(InputError, match="folder"):
        me.save()
    with pytest.raises(InputError):
        load_personalizer(tmp_path, Fake())
    for wrong in (dict(ask="never"), dict(every=0), dict(every=-3)):
        with pytest.raises(InputError):
            start(**wrong)
    me.save(tmp_path)
    other = Fake()
    other.base = "other"
    with pytest.raises(InputError, match="other"):
        load_personalizer(tmp_path, other)
