"The rules that decide what a person gets, against the same rules said plainly, on random cases."

import contextlib
import io
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
from candidates import candidate
from plain import dot, judge_plainly, lay_out, read_corrections, read_reasons, take

from personal_llm.base.core import ANSWERED_ORIGINS, Dialogue
from personal_llm.base.text import are_copies, describe_copy, normalise_text
from personal_llm.base.replies import ReplyLimit
from personal_llm.base.tokens import MAX_CHARACTERS_PER_TOKEN
from personal_llm.buffer.buffer import Buffer
from personal_llm.buffer.policies import POLICIES
from personal_llm.device import idle
from personal_llm.device.state import Instruction
from personal_llm.memory import gate, retrieval
from personal_llm.memory.feedback import Reaction
from personal_llm.memory.gate import Evidence, General, judge
from personal_llm.memory.retrieval import MemoryConfig, add_memories, choose_statements, find_shown, retrieve
from personal_llm.memory.statements import Asked, Statement
from personal_llm.selection import selection
from personal_llm.selection.ranking import BASE_NAME, PLLMLosses, SelectionRequest
from personal_llm.selection.selection import select_by_match

SEEDS = range(1000)


def draw_vector(draw, width=3):
    return [draw.randint(-2, 2) for _ in range(width)]


# ---- the gate


def draw_evidence(draw):
    "Return an `Evidence` with a dozen dialogues, and their vectors."
    groups = {name: [] for name in Evidence.__dataclass_fields__}
    vectors = {}
    for number in range(draw.randint(1, 12)):
        name = draw.choice([*groups, "answers", "left_alone"])
        origin = "model" if name == "wanted" else draw.choice(["annotated", "approved"])
        groups[name].append(Dialogue(f"Prompt {number}", "-", time=float(draw.randint(0, 6)), origin=origin))
        vectors[f"Prompt {number}"] = draw_vector(draw)
    by_time = {name: tuple(sorted(group, key=lambda d: d.time)) for name, group in groups.items()}
    return Evidence(**by_time), vectors


def test_the_gate(monkeypatch):
    monkeypatch.setattr(gate, "LENGTH_ERROR", np.inf)  # whole numbers are not of length 1
    monkeypatch.setattr(gate, "NEWEST", 3)
    monkeypatch.setattr(gate, "NUM_OPPOSING", 4)
    for seed in SEEDS:
        draw = random.Random(seed)
        evidence, vectors = draw_evidence(draw)
        general = General(np.array([draw_vector(draw) for _ in range(draw.choice([0, 3, 6]))], float).reshape(-1, 3))
        foreign = {prompt for prompt in vectors if draw.random() < 0.2}
        prompt = draw_vector(draw)
        rows = {name: np.array([vectors[d.prompt] for d in group], float) for name, group in vars(evidence).items()}
        verdict = judge(evidence, rows, np.array(prompt, float), general, foreign)
        if not evidence.taught:
            assert verdict == gate.Verdict(), seed
            continue
        applying, is_open, is_wide, reasons = judge_plainly(evidence, vectors, prompt, general, foreign)
        assert [*verdict.answers] == applying, seed
        assert [*verdict.similarities] == [dot(vectors[d.prompt], prompt) for d in applying], seed
        assert (verdict.is_open, verdict.is_wide) == (is_open, is_wide), seed
        read = read_reasons(verdict)
        assert read == (reasons if len(reasons) > 1 else [(None, False, reasons[0][2])]), seed


# ---- what a reply reads


def test_the_corrections_that_a_reply_reads():
    for seed in SEEDS:
        draw = random.Random(seed)
        prompts = [
            draw.choice(["Tea", "tea?", "Milk", "Mint", "Maté"]) + draw.choice(["", " 1", " 2"]) for _ in range(7)
        ]
        texts = [" ".join("w" * draw.randint(1, 9)) for _ in prompts]
        answers = [Dialogue(p, f"{t} {i}", time=float(i)) for i, (p, t) in enumerate(zip(prompts, texts))]
        likeness = {prompt: draw.choice([draw.random(), draw.uniform(0.7, 1), -draw.random()]) for prompt in prompts}
        shown_too = [("user", draw.choice(prompts)), ("assistant", draw.choice(answers).response)]
        prompt = draw.choice([*prompts, "Water"])
        config = MemoryConfig(memories=draw.randint(0, 4), max_tokens=draw.choice([3, 12, 20, 99]))
        shown = find_shown(answers, shown_too)
        told = {text for _, text in shown_too}
        assert shown == {d.prompt for d in answers if d.prompt in told and d.response in told}, seed
        count = lambda text: len(text.split())
        similarities = np.array([likeness[d.prompt] for d in answers])
        room = draw.choice([2, 15, 99])
        got = retrieve(answers, similarities, prompt, config, count, shown, room)
        sizes = {d: count(d.prompt) + count(d.response) for d in answers}
        assert got == read_corrections(answers, likeness, prompt, config, sizes, shown, room), seed


def find_changes(said, vectors, least):
    "Return which statements newer ones replace, and which ones a change may concern."
    replaced, doubtful = {}, {}
    for new, statement in enumerate(said):
        older = [old for old in range(new) if old not in replaced and said[old].id != statement.id]
        older = [old for old in older if said[old].kind != "state"]
        if statement.kind in ("home", "work", "age"):
            replaced |= {old: new for old in older if said[old].kind == statement.kind}
        if statement.kind == "change" and older:
            nearest = max(older, key=lambda old: dot(vectors[old], vectors[new]))
            rest = [dot(vectors[nearest], v) for i, v in enumerate(vectors) if i not in (nearest, new)]
            nearness = dot(vectors[nearest], vectors[new])
            is_nearest = all(nearness >= other for other in rest)
            if nearness >= least[new] and is_nearest and retrieval.is_surely_changed(said[nearest], statement):
                replaced[nearest] = new
            elif nearness >= least[new]:
                doubtful[nearest] = new
    return replaced, doubtful


DAY = 86_400.0
SAID = ["Tea in Graz.", "My sister Ruth sings.", "Left Graz, no tea.", "My wife moved.", "Tea in Graz!", "Ill."]


def test_the_statements_that_a_reply_reads(monkeypatch):
    monkeypatch.setattr(retrieval, "MAX_TOKENS", 30)
    count = lambda text: len(text.split())
    for seed in SEEDS:
        draw = random.Random(seed)
        start = draw.choice([0.0, 20_000 * DAY])  # places in a stream have no day
        said = []
        for number in range(draw.randint(0, 7)):
            kind = draw.choice(["lasting", "home", "work", "change", "state"])
            text = draw.choice(SAID) + draw.choice(["", " too" * 5])
            said.append(Statement(text, start + number * DAY / 3, f"{draw.randint(0, 9)}", kind))
        vectors, row = [draw_vector(draw) for _ in said], draw_vector(draw)
        least = [draw.randint(-4, 4) for _ in said]
        asked = Asked({draw.choice(["Ruth", "tea"])}, draw.random() < 0.7)
        config, time = MemoryConfig(statements=draw.randint(0, 4)), start + draw.randint(1, 4) * DAY
        rows = np.array(vectors, float).reshape(-1, 3)
        got = choose_statements(said, rows, np.array(least), asked, np.array(row), config, count, time)
        replaced, doubtful = find_changes(said, vectors, least)
        assert retrieval.find_updates(said, rows, np.array(least)) == (replaced, doubtful), seed
        wordings = {normalise_text(statement.text): place for place, statement in enumerate(said)}
        wanted = []
        for place in wordings.values():
            is_over = said[place].kind == "state" and start and time - said[place].time > DAY
            is_near = asked.is_about_self and dot(vectors[place], row) >= least[place]
            if not is_over and (is_near or asked.words & said[place].names):
                wanted.append(place)
        wanted = sorted(wanted, key=lambda place: -dot(vectors[place], row))[: config.statements]
        current = []
        for place in wanted:
            while place in replaced:
                place = replaced[place]
            current.append(place)
            place = doubtful.get(place, place)
            while place in replaced:
                place = replaced[place]
            current.append(place)
        sizes = {place: count(said[place].line) for place in current}
        chosen = take(dict.fromkeys(current), sizes, 30, config.statements)
        older = [said[place] for place in wanted if place in replaced]
        assert got == ([said[place] for place in sorted(chosen)], older), seed


def test_the_prompt_of_a_reply():
    for seed in SEEDS:
        draw = random.Random(seed)
        system = [("system", "Be kind.")] * draw.randint(0, 1)
        talk = [("user", "Hello."), ("assistant", "Hi!")] * draw.randint(0, 2)
        asked = Dialogue("And now?", "", [*system, *talk], time=draw.choice([0.0, 20_000 * DAY]))
        read = [Dialogue(f"Q{i}", f"A{i}", time=float(draw.randint(0, 4))) for i in range(draw.randint(0, 3))]
        said = [Statement(f"I am {i}.", 0.0) for i in range(draw.randint(0, 2))]
        always = [Instruction(i, f"Rule {i}.", float(draw.randint(0, 5))) for i in range(draw.randint(0, 3))]
        sentence = draw.choice(["", "As before."])
        got = add_memories(asked, read, said, MemoryConfig(sentence=sentence), always)
        today = "Today is 4 October 2024. " * bool(asked.time) + "The user told you before:"
        told = [today, *(f"- I am {i}." for i in range(len(said)))] if said else []
        assert ([*got.history], got.prompt) == lay_out(asked, read, told, always, sentence), seed


# ---- the default policy


def draw_candidate(draw, number):
    "A scored dialogue of any origin; some prompts are nearly the same."
    same = f"So, {number}, how long does the flight to Rome take on Monday?"
    prompt = draw.choice([f"w{number}a w{number}b w{number}c", same])
    origin = draw.choice(["model", "model", "annotated", "approved", "user"])
    c = candidate(prompt, embedding=[x + draw.random() for x in draw_vector(draw)])
    return type(c)(Dialogue(c.dialogue.prompt, f"Answer {number}", origin=origin, id=f"d{number}"), c.scores)


def find_leaver(entries, is_answer, kcenter):
    "Return which entry a candidate replaces, or None; entries: (arrival, origin) by slot; kcenter: that policy's slot."
    oldest = sorted(range(len(entries)), key=lambda slot: entries[slot][0])
    of = lambda *origins: [slot for slot in oldest if entries[slot][1] in origins]
    if not is_answer:
        return kcenter if kcenter in of("model", "user") else None
    if of("model", "user"):
        return of("model", "user")[0]
    if is_answer == "approved":
        return None
    return (of("approved") or oldest)[0]


def wants_question(buffer, c, left):
    "Return whether the default policy asks, with all centred cosines by hand."
    d = c.dialogue
    if left < 1 or any(are_copies(describe_copy(d.prompt), describe_copy(o.prompt)) for o in buffer.dialogues):
        return False
    answered = [slot for slot, o in enumerate(buffer.dialogues) if o.origin in ANSWERED_ORIGINS]
    if answered:
        units = np.array([entry.direction for entry in buffer.entries])
        centre = sum(units) / len(units)
        cosine = lambda slot: dot(units[slot] - centre, c.direction - centre) / np.linalg.norm(units[slot] - centre)
        if len(units) > 1 and buffer.dialogues[max(answered, key=cosine)].origin == "annotated":
            return True
        if len(units) == 1 and buffer.dialogues[0].origin == "annotated":
            return True
    since = buffer.seen - max([buffer.arrivals[slot] for slot in answered], default=-1)
    horizon, begin = buffer.policy.horizon, buffer.policy.begin
    return since * left >= horizon - (buffer.seen - begin) % horizon


def test_what_the_default_policy_keeps_and_when_it_asks():
    for seed in SEEDS[:200]:
        draw = random.Random(seed)
        buffer = Buffer(draw.randint(1, 4))
        kcenter = POLICIES["kcenter"]()
        for number in range(14):
            if draw.random() < 0.1:
                buffer.pace(draw.randint(0, 9))
            c, left = draw_candidate(draw, number), draw.randint(0, 3)
            assert buffer.wants_question(c, left) == wants_question(buffer, c, left), (seed, number)
            entries = [(arrival, d.origin) for arrival, d in zip(buffer.arrivals, buffer.dialogues)]
            before = [d.id for d in buffer.dialogues]
            is_answer = c.dialogue.origin if c.dialogue.origin in ANSWERED_ORIGINS else ""
            is_full = len(buffer) == buffer.capacity
            slot = find_leaver(entries, is_answer, kcenter.choose(buffer.view, c)[0]) if is_full else len(buffer)
            decision = buffer.add(c)
            evicted = before[slot] if is_full and slot is not None else ""
            assert (decision.kept, decision.evicted) == (slot is not None, evicted), (seed, number)


# ---- reactions


def test_what_a_reaction_makes_of_a_reply():
    for seed in SEEDS:
        draw = random.Random(seed)
        d = Dialogue("Tea?", draw.choice(["Yes.", "No."]), origin=draw.choice(["model", "annotated", "approved"]))
        kind, is_own = draw.choice(["better", "up", "down", "here_too", "not_here"]), draw.random() < 0.5
        text = draw.choice(["Yes.", "Maybe."]) if kind == "better" else ""
        got = Reaction(kind, d.id, text).apply(d, is_own)
        origin = d.origin
        if kind == "up":  # your own text stays a correction
            origin = "annotated" if is_own or d.origin == "annotated" else "approved"
        if kind in ("better", "down"):
            origin = dict(better="annotated", down="model")[kind]
        assert (got.prompt, got.response, got.origin) == (d.prompt, text or d.response, origin), seed
        is_same = (got.response, got.origin) == (d.response, d.origin)
        assert got is d if is_same else got.parents == (d.id,), seed


# ---- which pLLM a fine-tune begins from


def is_certain(gains, errors):  # that the mean gain is above 0 by so many standard errors
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    return mean - errors * (variance / len(gains)) ** 0.5 > 0


def race(rows, names):
    "Return who is left after 4, 8, 16, … dialogues; rows: name -> losses of the dialogues."
    count, num_dialogues = 2, len(rows[BASE_NAME])
    while names and count < num_dialogues:
        count = min(2 * count, num_dialogues)
        leader = min(names, key=lambda name: sum(rows[name][:count]))
        behind = {name: [a - b for a, b in zip(rows[name][:count], rows[leader][:count])] for name in names}
        names = [name for name in names if not is_certain(behind[name], 2)]
    return names


class Table(PLLMLosses):
    "Losses that are known beforehand."

    def __init__(self, rows):
        self.model, self.dialogues, self.rows, self.num_dialogues = None, [], rows, len(rows[BASE_NAME])

    def dialogue_losses(self, name, count=None):
        return np.array(self.rows[name][:count])


def test_the_pllm_that_a_fine_tune_begins_from(monkeypatch):
    for seed in SEEDS:
        draw = random.Random(seed)
        names = [BASE_NAME, *["plain"] * draw.randint(0, 1), *"abcde"[: draw.randint(0, 5)]]
        means = {name: draw.choice([2.0, 2.0 + draw.random()]) for name in names}
        common, spread = [draw.random() for _ in range(draw.randint(4, 20))], draw.choice([0.01, 0.3])
        rows = {name: [mean + x + spread * draw.random() for x in common] for name, mean in means.items()}
        slopes = {name: draw.uniform(-1, 1) for name in names if name != BASE_NAME}
        monkeypatch.setattr(selection, "compute_slopes", lambda *given: dict(slopes))
        library = {name: SimpleNamespace(adapter=name) for name in slopes}
        num_raced = draw.randint(1, 4)
        got = select_by_match(SelectionRequest(library, None, Table(rows)), num_raced)
        near = sorted(slopes.keys() - {"plain"}, key=slopes.get)
        left = race(rows, near[:num_raced])
        means = {name: sum(row) / len(row) for name, row in rows.items()}
        order = sorted(near, key=lambda name: (name not in left, means[name] if name in left else 0))
        has_plain = "plain" in rows
        reference = "plain" if has_plain and means["plain"] < means[BASE_NAME] else BASE_NAME
        least = means[reference] * (0.005 if has_plain else 0.05)
        gains = [a - b for a, b in zip(rows[reference], rows[order[0]])] if order else []
        is_best = bool(gains) and is_certain(gains, 1.5) and sum(gains) / len(gains) > least
        start = order[0] if is_best else "plain" if reference == "plain" else None
        assert (got.best, got.start, [*got.names]) == (order[0] if is_best else None, start, order), seed
        assert [*got.distances] == [slopes[name] for name in order] and {*got.losses} == {
            BASE_NAME,
            *["plain"] * has_plain,
            *left,
        }, seed


# ---- when a machine counts as idle


class Begun(Exception):
    pass


def test_a_fine_tune_begins_after_half_a_minute_without_an_obstacle_and_waits_again_when_it_was_stopped(monkeypatch):
    for seed in SEEDS[:300]:
        draw = random.Random(seed)
        limits = dict(other_load=(0.25, 0.26), on_battery=(False, True), free=(2.0, 1.9))
        rows = []  # of each second: what is measured, and whether somebody chats
        while len(rows) < 150:
            broken = draw.choice([None, None, *limits, "user"])
            row = {name: pair[name == broken] for name, pair in limits.items()}
            rows += [(row, broken == "user")] * draw.randint(1, 40)
        stops = draw.randint(0, 2)
        measured, begun = [], []

        def measure():
            measured.append(rows[len(measured)])
            return measured[-1][0]

        def finetune(*given, **options):
            begun.append(len(measured))
            if len(begun) <= stops:
                raise idle.MachineBusy
            raise Begun

        monkeypatch.setattr(idle, "find_user", lambda out: "a chat" * measured[-1][1])
        monkeypatch.setattr(idle, "finetune_folder", finetune)
        with contextlib.suppress(Begun, IndexError), contextlib.redirect_stderr(io.StringIO()):
            idle.finetune_when_idle("out", None, measure, lambda seconds: None)
        free = [not is_chat and row == {name: pair[0] for name, pair in limits.items()} for row, is_chat in rows]
        expected, quiet = [], 0
        for second, is_free in enumerate(free, 1):
            quiet = quiet + 1 if is_free else 0
            if quiet > 30 and len(expected) <= stops:
                expected.append(second)
                quiet = 0
        assert begun == expected, seed


def test_a_fine_tune_stops_once_a_limit_was_broken_for_three_seconds(monkeypatch):
    for seed in SEEDS[:300]:
        draw = random.Random(seed)
        loads = [load for _ in range(9) for load in [draw.choice([0.0, 0.9])] * draw.randint(1, 5)]
        now = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        hook = idle.StopWhenBusy(lambda: dict(other_load=loads[int(now[0])], on_battery=False, free=0.5))
        busy, last = 0.0, 0.0
        while now[0] < len(loads) - 2:
            now[0] += draw.choice([0.25, 0.5, 1.0])
            if now[0] - last >= 1:
                busy, last = (busy + now[0] - last if loads[int(now[0])] else 0.0), now[0]
            try:
                hook()
            except idle.MachineBusy:
                assert busy > 3, (seed, now)
                break
            assert busy <= 3, (seed, now)


# ---- what a server writes, and what ours accepts


def test_what_another_server_writes_is_cut_at_the_tokens_that_were_asked_for():
    model = SimpleNamespace(count_tokens=lambda text: len(text.split()))
    for seed in SEEDS:
        draw = random.Random(seed)
        limit = ReplyLimit(model, draw.randint(1, 6))
        most = 256 + MAX_CHARACTERS_PER_TOKEN * limit.max_tokens
        written, num_pieces = "", 0
        for _ in range(12):
            piece = draw.choice(["", "a", " b", " c d", "e " * draw.randint(1, 400)])
            num_pieces += bool(piece)
            is_over = num_pieces > limit.max_tokens and len(written.split()) >= limit.max_tokens
            expected = "" if is_over else piece[: most - len(written)]
            assert limit.take(piece) == expected, seed
            assert not piece or limit.is_reached == (expected != piece), seed
            written += expected


STRANGE = ["evil.org", "evil.org:80", "localhost.evil.org:80", "127.0.0.1:80/?x=", "127.0.0.1:80/page.css?"]
OTHERS = ["http://evil.org", "http://127.0.0.1:81"]


def test_who_may_use_the_server():
    server = pytest.importorskip("personal_llm.extras.server")
    for seed in SEEDS:
        draw = random.Random(seed)
        host = draw.choice(["127.0.0.1", "localhost", "0.0.0.0", "192.168.0.7", "::1"])
        own = draw.choice(["127.0.0.1:80", "localhost", "[::1]:80", "192.168.0.7:80", "localhost:x", "", *STRANGE])
        origin = draw.choice(["", "", f"http://{own}", f"https://{own}", "null", *OTHERS])
        key = draw.choice(["token", "other", "", server.sign_cookie("secret", "mine")])
        cookie = draw.choice(["", "mine", "theirs"])
        path = draw.choice(["/", "/index.html", "/me/talks", "/v1/models", "/v1/chat/completions", "/connect", "/x"])
        length = draw.choice([0, 2**12, 2**12 + 1, 2**22, 2**22 + 1, 2**25, 2**25 + 1])
        is_chunked = draw.random() < 0.1
        port = own.rpartition(":")[2] if ":" in own else own
        headers = dict(host=own, origin=origin, authorization=f"Bearer {key}", cookie=f"personal_llm_{port}={cookie}")
        headers |= {"content-length": str(length), "transfer-encoding": "chunked" * is_chunked}
        headers = {name: value for name, value in headers.items() if value}
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        request = server.Request(dict(type="http", path=path, headers=raw, method="POST", query_string=b""))
        is_here = own in ("127.0.0.1:80", "localhost", "[::1]:80")
        is_cookie = cookie == "mine" and "=" not in own  # no name of a cookie has one
        is_known = key == "token" or key == server.sign_cookie("secret", "mine") and is_cookie
        is_open = path in ("/", "/connect") or path in server.PUBLIC
        most = {"/v1/chat/completions": 2**25, "/me/talks": 2**22}.get(path, 2**12)
        expected = 0
        if host in ("127.0.0.1", "localhost", "::1") and not is_here:
            expected = 403
        elif origin not in ("", f"http://{own}"):
            expected = 403
        elif not (is_open or is_known):
            expected = 401
        elif is_chunked or length > most:
            expected = 411 if is_chunked else 413
        try:
            server.check_request(request, "token", host, "secret")
            status = 0
        except server.HTTPException as error:
            status = error.status_code
        assert status == expected, (seed, headers, host, path)


def test_the_options_of_a_request():
    server = pytest.importorskip("personal_llm.extras.server")
    for seed in SEEDS[:300]:
        draw = random.Random(seed)
        fields = dict(max_tokens=draw.choice([None, -1, 3, 900]), max_completion_tokens=draw.choice([None, 5]))
        fields |= dict(temperature=draw.choice([None, 0.0, 0.005, 0.5]), top_p=draw.choice([None, 0.0, 0.4]))
        fields |= dict(stop=draw.choice([None, "", "a", ["b", ""]]), seed=draw.choice([None, -1, 7, 2**31 + 3]))
        turns = [(draw.choice(["system", "developer", "user", "assistant", "tool"]), draw.choice(["", "x", "y"]))]
        turns = [*turns * draw.randint(0, 2), *[("user", "Hi"), ("system", "z")] * draw.randint(0, 1)]
        messages = [dict(role=role, content=text) for role, text in [*turns, ("user", "Now?")]]
        wanted = server.CompletionRequest(model="personal", messages=messages, **fields)
        system = [text for role, text in turns if role in ("system", "developer") and text]
        talk = [turn for turn in turns if turn[0] in ("user", "assistant") and turn[1]]
        assert wanted.get_history() == [("system", "\n\n".join(system))] * bool(system) + talk, seed
        count = fields["max_completion_tokens"] or (fields["max_tokens"] if fields["max_tokens"] != -1 else None)
        options = wanted.get_options(256)
        assert options.max_tokens == (count and min(count, 128)), seed
        assert options.temperature == (0.5 if fields["temperature"] == 0.5 else 0.0), seed
        assert options.top_p == {None: 1.0, 0.0: 0.01, 0.4: 0.4}[fields["top_p"]], seed
        assert options.stop == {"a": ("a",), "['b', '']": ("b",)}.get(str(fields["stop"]), ()), seed
        assert options.seed == {None: 0, -1: 2**31 - 1, 7: 7}.get(fields["seed"], 3), seed
