"Validation: lineages are never split, and the best weights are kept."

from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.tuning.finetune import find_lineages, validation_split


@st.composite
def families(draw):
    "Originals; corrected answers, synthetic children and grandchildren of one or two of them, in any order."
    out = [Dialogue(f"original {i}", "a") for i in range(draw(st.integers(1, 25)))]
    for i in range(draw(st.integers(0, 30))):
        parent, origin = (
            out[draw(st.integers(0, len(out) - 1))],
            draw(st.sampled_from(["synthetic", "synthetic", "annotated"])),
        )
        if origin == "annotated" and parent.origin == "synthetic":
            continue
        parents = {parent.id} | {out[k].id for k in draw(st.lists(st.integers(0, len(out) - 1), max_size=1))}
        out.append(Dialogue(f"child {i}", "a", origin=origin, parents=tuple(sorted(parents))))
    return draw(st.permutations(out))


def components(dialogues):  # id -> all ids that are tied to it
    "The naive twin of `find_lineages`: sets that are joined until nothing changes."
    found = {d.id: {d.id, *d.parents} for d in dialogues}
    for _ in dialogues:
        for one in found.values():
            for other in found.values():
                if one & other:
                    one |= other
    return found


@given(families(), st.floats(0, 0.99), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_lineages_are_not_split(dialogues, share, seed):
    "No dialogue trains that descends from a validation dialogue or is an ancestor of one."
    learn, choose = validation_split(dialogues, share, seed)
    families = components(dialogues)
    held = {name for d in choose for name in families[d.id]}
    assert not held & {d.id for d in learn}, "a lineage on both sides"
    assert learn, "something must be left to learn from"
    assert all(d.origin != "synthetic" for d in choose) and [d for d in dialogues if d in learn] == learn
    assert all(d in learn or d.id in held for d in dialogues), "nothing is lost but validation lineages"
    if share == 0:
        assert not choose
    again = validation_split(dialogues[::-1], share, seed)
    assert {d.id for d in again[1]} == {d.id for d in choose}, "the order does not count"


def test_long_chains_are_no_recursion():
    make = lambda name, *parents: Dialogue(name, "a", id=name, parents=parents)
    rows = [make("e", "d"), make("d", "gone"), make("b"), make("c", "b"), make("z", "c", "y"), make("y")]
    assert find_lineages(rows) == ["d", "d", "b", "b", "b", "b"], "the lowest id, in the list or not"
    chain = [make(f"{i:05d}", f"{i + 1:05d}") for i in range(2000)]
    assert set(find_lineages(chain)) == set(find_lineages(chain[::-1])) == {"00000"}
