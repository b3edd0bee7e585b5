"The buffer under any sequence of events, against naive twins; what is on disk."

import json, math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from personal_llm.base import core
from personal_llm.sdss.policies import POLICIES
from personal_llm.sdss.buffer import Buffer, bin_bytes, load_buffer
from personal_llm.base.core import Dialogue, InputError, generator
from personal_llm.sdss.scoring import Candidate, Scores, in_domain_dissimilarity, unit

settings.register_profile("brief", max_examples=60, deadline=None)
settings.load_profile("brief")


def candidate(name, eoe=0.5, dss=0.1, embedding=(1, 0, 0), domain="d0", scripts=None, model="base"):
    return Candidate(
        Dialogue(str(name), "answer"),
        Scores(eoe, eoe if scripts is None else scripts, dss, domain, np.array(embedding, np.float32), 1.0, 5, model),
    )


def stream(n, seed=0, width=4, domains=3):
    rng = np.random.default_rng(seed)
    return [
        candidate(i, rng.random(), rng.random(), rng.normal(size=width), f"d{rng.integers(domains)}", rng.random())
        for i in range(n)
    ]


def naive_idd(buffer, embedding, domain, without=None):
    kept = [c.scores.embedding for i, c in enumerate(buffer.entries) if c.scores.domain == domain and i != without]
    return in_domain_dissimilarity(np.asarray(embedding, np.float64), np.array(kept, np.float64))


def naive_fresh(buffer):
    return [naive_idd(buffer, c.scores.embedding, c.scores.domain, i) for i, c in enumerate(buffer.entries)]


def sound(buffer):
    assert len(buffer) <= buffer.capacity and len({d.id for d in buffer.dialogues}) == len(buffer)
    assert np.allclose(buffer.fresh_idd(), naive_fresh(buffer), atol=1e-6)
    assert buffer.nbytes == sum(map(bin_bytes, buffer.entries))


LEVELS = st.integers(0, 3).map(lambda n: n / 3)  # few levels: ties are common


class AnySequence(RuleBasedStateMachine):
    "add, save and load, rescore, clear in any order."

    @initialize(capacity=st.integers(1, 4), policy=st.sampled_from(sorted(POLICIES)), seed=st.integers(0, 9))
    def begin(self, capacity, policy, seed):
        self.buffer, self.offers, self.generation, self.draws = (
            Buffer(capacity, policy, seed),
            0,
            0,
            generator(seed, "buffer", policy),
        )

    @rule(
        eoe=LEVELS,
        scripts=LEVELS,
        dss=LEVELS,
        domain=st.sampled_from(["a", "b", "none"]),
        embedding=st.tuples(*[st.integers(-2, 2)] * 3).filter(any),
        again=st.booleans(),
    )
    def add(self, eoe, scripts, dss, domain, embedding, again):
        buffer = self.buffer
        c = candidate(
            "same" if again else f"new {self.offers}", eoe, dss, embedding, domain, scripts, f"model {self.generation}"
        )
        before, fresh, idd = list(buffer.entries), np.array(naive_fresh(buffer)), naive_idd(buffer, embedding, domain)
        arrivals, full, present = (
            buffer.metrics[3][: len(buffer)].copy(),
            buffer.full,
            c.dialogue.id in {d.id for d in buffer.dialogues},
        )
        decision = buffer.add(c)
        self.offers += 1
        assert (
            decision.id == c.dialogue.id
            and decision.reason
            and decision.step == self.offers - 1
            and decision == buffer.log[-1]
        )
        assert decision.scores == dict(eoe=eoe, dss=dss, idd=pytest.approx(idd, abs=1e-6), domain=domain)
        new, old = [o for o in buffer.entries if not any(o is b for b in before)], set(map(id, buffer.entries))
        gone = [o for o in before if id(o) not in old]
        assert [o.dialogue.id for o in gone] == ([decision.evicted] if decision.evicted else [])
        assert len(new) == decision.kept and all(o is c for o in new)
        if present:
            assert not decision.kept
            return
        if not full:
            assert decision.kept and not decision.evicted
            return
        assert decision.kept == bool(decision.evicted)
        victim = next((i for i, o in enumerate(before) if o.dialogue.id == decision.evicted), None)
        if buffer.policy in ("sdss", "eoe", "dss", "idd"):
            asked = ("eoe", "dss", "idd") if buffer.policy == "sdss" else (buffer.policy,)
            lead = {
                "eoe": [eoe - o.scores.eoe for o in before],
                "dss": [dss - o.scores.dss for o in before],
                "idd": list(idd - fresh),
            }
            if victim is not None:
                assert all(lead[name][victim] > (-1e-7 if name == "idd" else 0) for name in asked), (
                    "strictly beaten on all"
                )
            else:
                assert not any(
                    all(lead[name][i] > (1e-7 if name == "idd" else 0) for name in asked) for i in range(len(before))
                ), "somebody was beaten"
        if buffer.policy == "sdss-scripts" and victim is not None:
            s = before[victim].scores
            assert s.domain == domain and s.eoe_scripts > scripts and s.dss > dss and fresh[victim] < idd + 1e-7
        if buffer.policy == "fifo":
            assert victim == int(np.argmin(arrivals))
        if buffer.policy == "reservoir":
            place = int(self.draws.integers(decision.step + 1))
            assert victim == (place if place < buffer.capacity else None), "replayed from the seed"

    @rule()
    def save_and_load(self):
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            self.buffer.save(Path(folder, "buffer"))
            again = load_buffer(Path(folder, "buffer"))
        assert (
            again.log == self.buffer.log
            and again.dialogues == self.buffer.dialogues
            and again.random.bit_generator.state == self.buffer.random.bit_generator.state
        )
        assert np.array_equal(again.fresh_idd(), self.buffer.fresh_idd()) and np.array_equal(
            again.metrics[:, : len(again)], self.buffer.metrics[:, : len(again)]
        )
        self.buffer = again

    @rule(turn=st.permutations(range(3)))
    def rescore(self, turn):
        arrivals = self.buffer.metrics[3].copy()
        self.generation += 1
        self.buffer.rescore(
            [
                replace(
                    c,
                    scores=replace(
                        c.scores,
                        embedding=c.scores.embedding[list(turn)],
                        eoe=1 - c.scores.eoe,
                        model=f"model {self.generation}",
                    ),
                )
                for c in self.buffer.entries
            ]
        )
        assert np.array_equal(self.buffer.metrics[3], arrivals), "who came first"

    @rule()
    def clear(self):
        self.buffer.clear()
        assert len(self.buffer) == 0 and len(self.buffer.fresh_idd()) == 0

    @invariant()
    def holds(self):
        if hasattr(self, "buffer"):
            sound(self.buffer)
            assert self.buffer.seen == len(self.buffer.log) == self.offers


TestAnySequence = AnySequence.TestCase
TestAnySequence.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
def test_same_seed_same_log(policy):
    def run(seed, save=None, folder=None):
        buffer = Buffer(5, policy, seed)
        for i, c in enumerate(stream(120)):
            if i == save:
                buffer.save(folder / "b")
                buffer = load_buffer(folder / "b")
            buffer.add(c)
        return buffer

    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        halves = run(1, 60, Path(folder))
    one, two, other = run(1), run(1), run(2)
    assert one.log == two.log == halves.log and one.dialogues == two.dialogues == halves.dialogues
    if policy in ("random", "reservoir", "eoe"):
        assert other.log != one.log


def test_the_rule_is_strict_on_each_score():
    "A tie on any one of the three is no win; a lead on all three is."

    def offer(eoe, dss, embedding):
        buffer = Buffer(2, "sdss")
        buffer.add(candidate("x", 0.5, 0.5, (1, 0, 0)))
        buffer.add(candidate("y", 0.5, 0.5, (0, 1, 0)))  # IDD 1 each
        return buffer.add(candidate("new", eoe, dss, embedding)).kept

    assert offer(0.6, 0.6, (-1, -1, 0)) and not offer(0.5, 0.6, (-1, -1, 0)) and not offer(0.6, 0.5, (-1, -1, 0))
    assert not offer(0.6, 0.6, (0, 0, 1)), "IDD 1 against 1"
    assert not offer(0.6, 0.6, (1, 1, 0)), "IDD 0.29 against 1"


def test_embeddings_of_zeros():
    "A direction of nothing: its cosine with anything is 0, its own included."
    buffer = Buffer(3)
    for i in range(3):
        buffer.add(candidate(i, embedding=(0, 0, 0) if i < 2 else (1, 0, 0)))
    sound(buffer)
    assert buffer.fresh_idd().tolist() == [1, 1, 1]


@pytest.mark.parametrize("capacity,seed", [(1, 0), (3, 1), (8, 2)])
def test_reservoir_is_algorithm_r(capacity, seed):
    "Written out: the n-th dialogue takes place r, drawn from 0 to n - 1, when there is such a bin."
    buffer, draws, bins = Buffer(capacity, "reservoir", seed), generator(seed, "buffer", "reservoir"), []
    for n, c in enumerate(stream(80), 1):
        buffer.add(c)
        place = len(bins) if len(bins) < capacity else int(draws.integers(n))
        if place < capacity:
            bins[place : place + 1] = [c.dialogue]
        assert buffer.dialogues == bins


def test_kcenter_keeps_points_far_apart():
    buffer = Buffer(3, "kcenter")
    for name, e in (("a", (1, 0, 0)), ("b", (1, 0.1, 0)), ("c", (0, 1, 0))):
        buffer.add(candidate(name, embedding=e))
    assert buffer.add(candidate("far", embedding=(0, 0, 1))).evicted in {Dialogue(n, "answer").id for n in "ab"}
    assert not buffer.add(candidate("near", embedding=(0, 0.01, 1))).kept


def all_pairs(buffer, c, product):
    "Which bin K-center gives up for a candidate, every pair computed anew; None: the candidate goes."
    units = np.array([unit(o.scores.embedding.astype(np.float64)) for o in buffer.entries])
    likeness = product(units, units)
    np.fill_diagonal(likeness, -np.inf)
    first, second = divmod(int(likeness.argmax()), len(units))
    if product(units, unit(c.scores.embedding.astype(np.float64))[None]).max() >= likeness[first, second]:
        return None
    rest = [
        np.delete(likeness[i], other).max() if len(units) > 2 else -np.inf
        for i, other in ((first, second), (second, first))
    ]
    return first if rest[0] >= rest[1] else second


PAIRS = {
    "drawn from normals": (lambda rng: rng.normal(size=8), lambda a, b: a @ b.T),
    "ties": (lambda rng: rng.integers(-1, 2, 3) + [0, 0, 1e-9], lambda a, b: (a[:, None] * b).sum(-1)),
}


@pytest.mark.parametrize("capacity", [2, 3, 9])
@pytest.mark.parametrize("kind", PAIRS)
def test_kcenter_against_all_pairs(kind, capacity, tmp_path):
    "The pair matrix that changes by a row and a column decides as one that is computed anew; saved, loaded and rescored on the way."
    draw, product = PAIRS[kind]
    rng, buffer, kept = np.random.default_rng(capacity), Buffer(capacity, "kcenter"), 0
    for i in range(400):
        c = candidate(i, embedding=draw(rng))
        expected = all_pairs(buffer, c, product) if buffer.full else len(buffer)
        evicted = "" if expected in (None, len(buffer)) else buffer.dialogues[expected].id
        decision = buffer.add(c)
        assert (decision.kept, decision.evicted) == (expected is not None, evicted), i
        kept += decision.kept
        if i == 150:
            buffer.save(tmp_path / "b")
            buffer = load_buffer(tmp_path / "b")
        if i == 250:
            buffer.rescore(
                [
                    replace(o, scores=replace(o.scores, embedding=o.scores.embedding[::-1].copy()))
                    for o in buffer.entries
                ]
            )
    assert capacity == 2 or kept > capacity, "nothing was decided"


def test_bookkeeping_does_not_drift():
    "The sums after 2,000 replacements are those of the entries."
    buffer = Buffer(8, "fifo")
    for c in stream(2000, seed=3):
        buffer.add(c)
    sound(buffer)
    assert np.abs(buffer.fresh_idd() - naive_fresh(buffer)).max() < 1e-9


def test_embeddings_of_another_model_are_refused():
    buffer = Buffer(3)
    buffer.add(candidate("a"))
    with pytest.raises(InputError, match="rescore"):
        buffer.add(candidate("b", model="other"))
    with pytest.raises(InputError):
        buffer.rescore([candidate("b")])
    assert len(buffer.log) == buffer.seen == len(buffer) == 1


@pytest.mark.parametrize("capacity", [0, -1, 2.5, "8", None, math.nan])
def test_bad_capacities(capacity):
    with pytest.raises(InputError):
        Buffer(capacity)


def test_unknown_policy():
    with pytest.raises(InputError, match="sdss, random"):
        Buffer(3, "best")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    buffer = Buffer(3, "sdss", 4)
    for c in stream(12, seed=2):
        buffer.add(c)
    path = tmp_path_factory.mktemp("buffer") / "buffer.safetensors"
    buffer.save(path)
    return path


def outcome(path, content):
    "Damaged content either loads to a buffer that works, or raises InputError; the file is not touched."
    file = path.with_name("damaged")
    file.write_bytes(content)
    try:
        buffer = load_buffer(file)
    except InputError as error:
        assert "\n" not in str(error)
        return "refused"
    finally:
        assert file.read_bytes() == content
    sound(buffer)
    for c in stream(6, seed=9):
        buffer.add(
            replace(c, scores=replace(c.scores, model=buffer.entries[0].scores.model if buffer.entries else "base"))
        )
    sound(buffer)
    buffer.save(path.with_name("again"))
    load_buffer(path.with_name("again"))
    return "loaded"


@given(st.data())
@settings(max_examples=250)
def test_any_flipped_byte(saved, data):
    content = bytearray(saved.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    outcome(saved, bytes(content))


def test_flipped_digits_and_signs(saved):
    "Changes that stay JSON: every digit of the header becomes another."
    content = saved.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    places = [i for i in range(8, size) if chr(content[i]) in "0123456789"]
    for i in places[:: max(1, len(places) // 150)]:
        outcome(saved, content[:i] + (b"0" if content[i : i + 1] != b"0" else b"7") + content[i + 1 :])


@given(st.integers(0, 10**6))
def test_truncated_files_are_refused(saved, size):
    content = saved.read_bytes()
    assert outcome(saved, content[: size % len(content)]) == "refused"


def test_foreign_files_are_refused(saved, tmp_path):
    from safetensors.numpy import save

    x = dict(embeddings=np.zeros((1, 1), np.float32))
    for content in (
        b"",
        b"{}",
        b"\x00" * 100,
        save(x),
        save(x, metadata=dict(buffer="[]")),
        save(x, metadata=dict(buffer="{}")),
        save(x, metadata=dict(buffer="not json")),
    ):
        assert outcome(saved, content) == "refused"
    for place in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError):
            load_buffer(place)


def state_with(path, change):
    "The saved file with another header."
    from safetensors import safe_open
    from safetensors.numpy import save

    with safe_open(str(path), "numpy") as f:
        state, tensors = json.loads(f.metadata()["buffer"]), {k: f.get_tensor(k) for k in f.keys()}
    change(state, tensors)
    return save(tensors, metadata=dict(buffer=json.dumps(state)))


CHANGES = {
    "fewer bins than rows": lambda s, t: s.update(capacity=2),
    "more bins than products": lambda s, t: s.update(capacity=9),
    "more rows than embeddings": lambda s, t: s["rows"].append(s["rows"][0]),
    "rows are text": lambda s, t: s.update(rows=["x"]),
    "an entry twice": lambda s, t: s["rows"].__setitem__(1, s["rows"][0]),
    "no rows": lambda s, t: s.update(rows=[]),
    "seen is another number": lambda s, t: s.update(seen=7),
    "random state of another generator": lambda s, t: s["random"].update(bit_generator="MT19937"),
    "other products": lambda s, t: t.update(products=t["products"] + 1),
    "a score is text": lambda s, t: s["rows"][0].update(eoe="high"),
    "embeddings are not numbers": lambda s, t: t.update(embeddings=t["embeddings"] * np.nan),
    "capacity is huge": lambda s, t: s.update(capacity=10**18),
}


@pytest.mark.parametrize("what", CHANGES)
def test_contradictions_are_refused(saved, what):
    outcome(saved, state_with(saved, CHANGES[what]))


@pytest.mark.parametrize("failing", ["replace", "fsync", "open"])
def test_a_failed_save_leaves_the_old_file(saved, failing, monkeypatch, tmp_path):
    path, full = tmp_path / "b", OSError(28, "No space left on device")
    path.write_bytes(saved.read_bytes())
    buffer = load_buffer(path)
    buffer.add(candidate("one more", embedding=(1, 0, 0, 0)))

    def fail(*a, **k):
        raise full

    with monkeypatch.context() as patch:
        if failing == "open":
            patch.setattr(core, "open", fail, raising=False)
        else:
            patch.setattr(core.os, failing, fail)
        with pytest.raises(InputError, match="No space"):
            buffer.save(path)
    assert path.read_bytes() == saved.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["b"]
