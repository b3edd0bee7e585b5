"""Rules that decide what a person gets, said once more as plainly as possible.

Vectors are lists of small whole numbers, so that sums are exact and equal in any order, and ties are common.
"""

import numpy as np

from personal_llm.base.text import normalise_text
from personal_llm.memory import gate, retrieval


def dot(one, other):
    return sum(x * y for x, y in zip(one, other))


def closeness(prompt, texts):
    likeness = [dot(prompt, text) for text in texts]
    return (1 - gate.MEAN_WEIGHT) * max(likeness) + gate.MEAN_WEIGHT * sum(likeness) / len(likeness)


# ---- the gate


class Side:
    "The corrections of one group, what they override, and whether they apply to a prompt."

    def __init__(self, taught, opposing, general, is_narrow):  # (dialogue, vector) pairs; opposing: with a time
        self.taught = taught
        vectors = [vector for _, vector in taught]
        newest = vectors[-gate.NEWEST :]
        nearest = [max([dot(a, b) for j, b in enumerate(newest) if j != i], default=0) for i, a in enumerate(newest)]
        spread = sum(nearest) / len(nearest)
        self.reach = gate.REACH * spread if len(taught) > 1 else -np.inf
        first = min(d.time for d, _ in taught)
        num_since = sum(time > first for _, _, time in opposing)
        is_few = num_since <= gate.MOST_ALONE * len(taught)
        is_by_chance = len(newest) > 1 and spread <= general.measure_chance(len(newest))
        self.is_scattered = not is_narrow and is_few and is_by_chance
        self.general = [] if self.is_scattered else general.rows.tolist()[: gate.NUM_OPPOSING]
        self.earlier, self.opposing = [], []
        for d, vector, time in opposing:
            nearest = max(taught, key=lambda pair: dot(pair[1], vector))[0]
            is_overridden = time < nearest.time and self.is_near(vector) and self.is_nearer(vector, self.general)
            (self.earlier if is_overridden else self.opposing).append((d, vector))

    def is_near(self, vector):
        return max(dot(vector, other) for _, other in self.taught) >= self.reach

    def is_nearer(self, vector, others):
        return not others or closeness(vector, [v for _, v in self.taught]) > closeness(vector, others)

    def applies(self, vector):
        opposing = [other for _, other in self.opposing]
        return self.is_near(vector) and self.is_nearer(vector, opposing) and self.is_nearer(vector, self.general)

    def explain(self, vector, plain):  # the name of the reason, and the prompt that it names
        nearest = max(self.taught, key=lambda pair: dot(pair[1], vector))[0]
        if not self.applies(vector):
            if not self.is_nearer(vector, [v for _, v in self.opposing]):
                d = max(self.opposing, key=lambda pair: dot(pair[1], vector))[0]
                return "nearer_taken_out" if d in plain else "nearer_left_alone", d.prompt
            return ("not_near", nearest.prompt) if self.is_nearer(vector, self.general) else ("nearer_general", None)
        if self.is_scattered:
            return "no_subject", nearest.prompt
        if not self.is_nearer(vector, [v for _, v in self.earlier]):
            return "newer_than", max(self.earlier, key=lambda pair: dot(pair[1], vector))[0].prompt
        names = dict(approved="similar_to_liked", model="similar_to_wanted")
        return names.get(nearest.origin, "similar_to"), nearest.prompt


def judge_plainly(evidence, vectors, prompt, general, foreign):
    "Return what applies, oldest first, whether an adapter may, whether it is wide, and the reasons by name."
    with_vectors = lambda group: [(d, vectors[d.prompt]) for d in group]
    opposing = [(d, vector, d.time) for d, vector in with_vectors(evidence.left_alone)]
    opposing += [(d, vector, np.inf) for d, vector in with_vectors(evidence.plain)]
    applying = [*evidence.everywhere]
    reasons = [(len(applying), True, ("said_everywhere", None))] * bool(applying)
    is_open, is_wide = not (evidence.answers or evidence.here), False
    for name in ("answers", "here"):
        own = [d for d in getattr(evidence, name) if d.prompt not in foreign]
        if own:
            side = Side(with_vectors((*evidence.wanted, *own)), opposing, general, name == "here")
            does_apply = side.applies(prompt)
            is_open, is_wide = is_open or does_apply, is_wide or side.is_scattered
            applying += own * does_apply
            reasons.append((len(own), does_apply, side.explain(prompt, evidence.plain)))
        if len(own) < len(getattr(evidence, name)):
            reasons.append((len(getattr(evidence, name)) - len(own), False, ("other_language", None)))
    return sorted(applying, key=lambda d: d.time), is_open, is_wide, reasons


def read_reasons(verdict):
    "Return the reasons of a verdict as `judge_plainly` does."
    read = []
    for note in verdict.reasons:
        does_apply, count = note.name == "part_applies", dict(note.fields).get("count")
        inner = dict(note.fields)["reason"] if note.name.startswith("part_") else note
        named = dict(inner.fields)
        if inner.name == "no_subject":
            named = dict(named["reason"].fields)
        read.append((count, does_apply, (inner.name, named.get("prompt"))))
    return read


# ---- what a reply reads


def follow(answers, likeness, prompt):
    "Return the answers in the order in which a reply follows them, each wording once."
    wording = lambda text: normalise_text(text) or text
    newest = {wording(d.prompt): d for d in answers}
    near = max([0.0, *likeness.values()]) * retrieval.NEAR
    ahead = [d for d in reversed(answers) if likeness[d.prompt] >= near]
    behind = [d for d in sorted(answers, key=lambda d: -likeness[d.prompt]) if likeness[d.prompt] < near]
    same = [d for d in answers if wording(d.prompt) == wording(prompt)]
    return [d for d in dict.fromkeys([*same[-1:], *ahead, *behind]) if d in newest.values()]


def take(items, sizes, most, count):
    taken = []
    for item in items:
        if len(taken) < count and sum(sizes[one] for one in [*taken, item]) <= most:
            taken.append(item)
    return taken


def read_corrections(answers, likeness, prompt, config, sizes, shown, room=np.inf):
    "Return the corrections that a reply reads, the one that it should follow most at the end."
    wanted = [d for d in follow(answers, likeness, prompt) if d.prompt not in shown]
    several = take(wanted, sizes, min(config.max_tokens, room), config.memories)[::-1]
    return several or take(wanted, sizes, room, min(1, config.memories))


def lay_out(asked, read, told, always, sentence):
    """Return the turns before a prompt, and the prompt, as the model receives them.

    asked: a `Dialogue`; read: corrections; told: lines about the person; always: instructions with text and time
    """
    is_older = lambda rule: any(rule.time <= d.time for d in read)
    has_system = bool(asked.history) and asked.history[0][0] == "system"
    lines = [text for _, text in asked.history[:has_system]] + [rule.text for rule in always if is_older(rule)]
    lines += [sentence] * bool(read and sentence) + told
    turns = [pair for d in read for pair in (("user", d.prompt), ("assistant", d.response))]
    newer = " ".join(rule.text for rule in always if not is_older(rule))
    history = [("system", "\n".join(lines))] * bool(lines) + turns + [*asked.history[has_system:]]
    return history, f"{asked.prompt}\n({newer})" if newer else asked.prompt
