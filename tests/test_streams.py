"Readers, splits and streams: every layout, every bad input, round trips, and the laws of habits."

import gzip, json, string

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import ORIGINS, Dialogue, InputError, generator
from personal_llm.data.reading import FORMATS, load_samples, read_dialogues, write_dialogues
from personal_llm.data.streams import correlated_stream, episodes, paper_stream, small_edit
from personal_llm.data.splits import dialogue_group, group_of, held_out, is_reserved, leak_audit
from personal_llm.base.text import normalise, shingles, word_hashes
from personal_llm.data.users import (
    SMALL_TALK,
    USERS,
    Habit,
    brevity,
    bullets,
    emoji,
    lower_case,
    opener,
    preferred_words,
    sign_off,
    steps,
    user_stream,
)

user, bot = (lambda text: dict(role="user", content=text)), (lambda text: dict(role="assistant", content=text))
CHAT = [user("Hi"), bot("Hello"), user("Bye"), bot("See you")]

# layout, records, the (prompt, response) pairs that they hold
LAYOUTS = [
    ("messages", [dict(messages=CHAT)], [("Hi", "Hello"), ("Bye", "See you")]),
    ("messages", [CHAT], [("Hi", "Hello"), ("Bye", "See you")]),
    ("messages", [dict(messages=[dict(role="system", content="Be kind."), *CHAT[:2]], model="x")], [("Hi", "Hello")]),
    ("messages", [dict(messages=[bot("Welcome!"), user("a"), user("b"), bot("c")])], [("a\nb", "c")]),
    (
        "messages",
        [dict(messages=[dict(role="user", content=[dict(type="text", text="a"), dict(type="image_url")]), bot("c")])],
        [("a", "c")],
    ),
    ("prompt-completion", [dict(prompt="Hi", completion="Hello")], [("Hi", "Hello")]),
    ("prompt-completion", [dict(prompt="Hi", response="Hello", extra=1)], [("Hi", "Hello")]),
    ("alpaca", [dict(instruction="Add.", input="1 2", output="3")], [("Add.\n\n1 2", "3")]),
    ("alpaca", [dict(instruction="Add.", input="", output="3")], [("Add.", "3")]),
    (
        "dolly",
        [dict(instruction="Who?", context="Ada wrote it.", response="Ada", category="qa")],
        [("Who?\n\nAda wrote it.", "Ada")],
    ),
    (
        "openorca",
        [dict(id="1", system_prompt="Be brief.", question="Who?", response="Ada")],
        [("Be brief.\n\nWho?", "Ada")],
    ),
    ("openorca", [dict(id="1", system_prompt="", question="Who?", response="Ada")], [("Who?", "Ada")]),
    (
        "meddialog",
        [dict(description="cough", utterances=["patient: I cough.", "doctor: Since when?"])],
        [("I cough.", "Since when?")],
    ),
    (
        "meddialog",
        [
            dict(
                dialogue_turns=[
                    dict(speaker="Patient", utterance="I cough."),
                    dict(speaker="Doctor", utterance="Since when?"),
                ]
            )
        ],
        [("I cough.", "Since when?")],
    ),
    (
        "meddialog",
        [dict(dialogue_turns=dict(speaker=[0, 1], utterance=["I cough.", "Since when?"]))],
        [("I cough.", "Since when?")],
    ),
    (
        "meddialog",
        [dict(instruction="You are a doctor", input="I cough.", output="Since when?")],
        None,
    ),  # read as alpaca unless named
    (
        "meddialog",
        [dict(patient_message="I cough.", doctor_response="Since when?", dialogue_context="")],
        [("I cough.", "Since when?")],
    ),
    (
        "text",
        [dict(text="One two three,\nfour five six seven eight\n\nnine.", label=3)],
        [("One two three, four five six", "seven eight\n\nnine.")],
    ),
    (
        "prosocial",
        [dict(context="I lied.", response="Tell them.", rots=[], dialogue_id=3)],
        [("I lied.", "Tell them.")],
    ),
    (
        "empathetic",
        [
            dict(conv_id="a", utterance_idx=1, prompt="p", utterance="My dog_comma_ Rex_comma_ died."),
            dict(conv_id="a", utterance_idx=2, prompt="p", utterance="So sorry."),
            dict(conv_id="b", utterance_idx=1, prompt="p", utterance="I won!"),
            dict(conv_id="b", utterance_idx=2, prompt="p", utterance="Well done."),
        ],
        [("My dog, Rex, died.", "So sorry."), ("I won!", "Well done.")],
    ),
]
pairs = lambda dialogues: [(d.prompt, d.response) for d in dialogues]


def save(path, rows, kind):
    if kind == "json":
        text = json.dumps(rows)
    else:
        text = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz"])
@pytest.mark.parametrize("name,rows,want", LAYOUTS)
def test_layouts(tmp_path, name, rows, want, kind):
    path = save(tmp_path / f"chats.{kind}", rows, kind)
    if want is None:
        assert pairs(read_dialogues(path, "meddialog")) == [("I cough.", "Since when?")]
        return
    found = read_dialogues(path)
    assert pairs(found) == want and found.format == name and not found.skipped
    assert read_dialogues(path, format=name) == found


def test_every_format_is_tested():
    assert {name for name, *_ in LAYOUTS} | {"csv", "dialogue"} == set(FORMATS)


def test_prose_says_what_it_is_and_must_be_long_enough(tmp_path):
    path = save(
        tmp_path / "notes.jsonl",
        [dict(text="One two three four five six seven eight nine."), dict(text="Too short."), dict(text=7)],
        "jsonl",
    )
    found = read_dialogues(path, skip_bad=True)
    assert (
        len(found) == 1
        and found[0].labels["counterpart"] == "continuations"
        and [line for line, _ in found.skipped] == [2, 3]
    )
    with pytest.raises(InputError, match="line 2: no text has more than 8 words"):
        read_dialogues(path)


def test_history_and_group_of_a_conversation(tmp_path):
    found = read_dialogues(save(tmp_path / "c.jsonl", [dict(messages=CHAT)], "jsonl"))
    assert found[1].history == (("user", "Hi"), ("assistant", "Hello")) and dialogue_group(found[0]) == dialogue_group(
        found[1]
    )
    prosocial = [dict(context=f"c{i}", response="r", dialogue_id=i // 2) for i in range(4)]
    assert [dialogue_group(d) for d in read_dialogues(save(tmp_path / "p.jsonl", prosocial, "jsonl"))] == [
        "0",
        "0",
        "1",
        "1",
    ]


def test_csv(tmp_path):
    path = tmp_path / "chats.csv"
    path.write_bytes(
        '\ufeffprompt,response,when\r\n"Hi, you","Hello\r\nthere",1\r\n\r\nBye,"He said ""so""",2\r\n'.encode()
    )
    assert pairs(read_dialogues(path)) == [("Hi, you", "Hello\r\nthere"), ("Bye", 'He said "so"')]
    path.write_text(
        'conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\nhit:0,1,sad,"so,0,"My_comma_ oh,5|5,\nhit:0,2,sad,"so,1,Sorry "you",5|5,\n'
    )
    assert pairs(read_dialogues(path)) == [('"My, oh', 'Sorry "you"')]
    path.write_text("prompt,response\na,b\nc\nd,e\n")
    assert (
        pairs(read_dialogues(path, skip_bad=True)) == [("a", "b"), ("d", "e")]
        and read_dialogues(path, skip_bad=True).skipped[0][0] == 3
    )


GOOD = b'{"prompt": "Hi", "response": "Hello"}\n'
BAD = [  # content, name, line or None, words of the message
    (b"", "a.jsonl", None, "empty file"),
    (b" \n\n", "a.jsonl", None, "empty file"),
    (b"\xef\xbb\xbf", "a.jsonl", None, "empty file"),
    (GOOD + b'{"prompt": "Hi"\n', "a.jsonl", 2, "broken JSON"),
    (GOOD + b"\n" + b"nonsense\n", "a.jsonl", 3, "broken JSON"),
    (b'{"question": "Hi", "reply": "Hello"}\n', "a.jsonl", 1, "question, reply"),
    (GOOD + b'{"prompt": "Hi", "reply": "x"}\n', "a.jsonl", 2, "prompt and completion"),
    (GOOD + b'{"prompt": "  ", "response": "x"}\n', "a.jsonl", 2, "empty prompt"),
    (GOOD + b'{"prompt": "x", "response": "\\u0000"}\n', "a.jsonl", 2, "empty response"),
    (GOOD + b'{"prompt": 3, "response": "x"}\n', "a.jsonl", 2, "int, not text"),
    (GOOD + b"17\n", "a.jsonl", 2, "int"),
    (GOOD + b"{}\n", "a.jsonl", 2, "none"),
    (GOOD + b'{"prompt": "caf\xe9", "response": "x"}\n', "a.jsonl", 2, "UTF-8"),
    ("hello".encode("utf-16"), "a.jsonl", 1, "UTF-8"),
    (GOOD + b"[" * 100_000 + b"\n", "a.jsonl", 2, "JSON"),
    (GOOD + b"9" * 10_000 + b"\n", "a.jsonl", 2, ""),
    (b'{"messages": []}\n', "a.jsonl", 1, "no assistant turn"),
    (b'{"messages": "Hi"}\n', "a.jsonl", 1, "list"),
    (b'{"messages": [{"role": "user", "content": "x"}]}\n', "a.jsonl", 1, "no assistant turn"),
    (b'{"utterances": ["nurse: hi"]}\n', "a.jsonl", 1, "unknown speaker"),
    (b'{"conv_id": "a", "utterance_idx": "x", "utterance": "y"}\n', "a.jsonl", 1, "utterance_idx"),
    (b'{"id": "1", "prompt": "x", "response": "y", "origin": "dream"}\n', "a.jsonl", 1, "origin"),
    (b'{"id": "1", "prompt": "x", "response": "y", "origin": "user", "history": 3}\n', "a.jsonl", 1, ""),
    (b'[{"prompt": "x", "response": "y"},\n {"prompt": "x"]', "a.json", 2, "broken JSON"),
    (b"[]", "a.json", None, "list"),
    (b"3", "a.json", None, "list"),
    (b'[{"prompt": "x", "response": "y"}, {"prompt": "x", "response": ""}]', "a.json", 2, "empty response"),
    (b"prompt,answer\na,b\n", "a.csv", 2, "prompt, answer"),
    (b"prompt,response\na,b,c\n", "a.csv", 2, "header"),
    (b'prompt,response\na,"b\n', "a.csv", 2, "CSV"),
    (b"prompt,response\n", "a.csv", None, "no dialogue"),
    (gzip.compress(GOOD)[:-12], "a.jsonl.gz", None, "gzip"),
]


@pytest.mark.parametrize("content,name,line,words", BAD)
def test_bad_input_names_file_line_and_remedy(tmp_path, content, name, line, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_dialogues(path)
    message = str(caught.value)
    assert (
        str(path) in message
        and words in message
        and "\n" not in message
        and (line is None or f"line {line}:" in message or f"item {line}:" in message)
        and ";" in message
    )


@pytest.mark.parametrize("content,name,line,words", [b for b in BAD if b[0].startswith(GOOD)])
def test_good_lines_stay_usable(tmp_path, content, name, line, words):
    (tmp_path / name).write_bytes(content + GOOD)
    found = read_dialogues(tmp_path / name, skip_bad=True)
    assert pairs(found) == [("Hi", "Hello")] * 2 and [k for k, _ in found.skipped] == [line]


def test_missing_folder_unknown_format_and_nothing_good(tmp_path):
    for path, words in (tmp_path / "none.jsonl", "no such file"), (tmp_path, "folder"):
        with pytest.raises(InputError, match=words):
            read_dialogues(path)
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match="unknown format"):
        read_dialogues(tmp_path / "a.jsonl", "chatml")
    (tmp_path / "b.jsonl").write_bytes(b"{\n{\n")
    with pytest.raises(InputError, match="2 bad lines"):
        read_dialogues(tmp_path / "b.jsonl", skip_bad=True)


ODD = [
    "x" * 1_000_000,
    "a\x01\x02\x1b[31m\x7f",
    "مرحبا بالعالم \u202eabc\u202c",
    "👩‍🚀🏳️‍🌈 ok",
    "<|end|><s>[INST]</s>{% raw %}",
    "a\u2028b\u0085c\x0bd",
    "line\r\nline",
    "\ufeffinner",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_kept(tmp_path, text):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps(dict(prompt=text, response=text + "\0!"), ensure_ascii=False).encode()
        + b"\r\n"
        + GOOD
    )
    assert pairs(read_dialogues(path)) == [(text, text + "!"), ("Hi", "Hello")]
    write_dialogues(tmp_path / "b.jsonl", read_dialogues(path))
    assert read_dialogues(tmp_path / "b.jsonl") == read_dialogues(path)


def test_lone_surrogates_do_not_stop_a_file(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a\\ud800b", "response": "c"}\n')
    assert pairs(read_dialogues(tmp_path / "a.jsonl")) == [("a?b", "c")]


texts = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40).map(
    lambda s: s + "x"
)
dialogues = st.builds(
    Dialogue,
    texts,
    texts,
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), texts), max_size=3),
    time=st.floats(0, 1e9),
    origin=st.sampled_from(ORIGINS),
    parents=st.lists(st.text(string.hexdigits, min_size=1), max_size=2),
    labels=st.dictionaries(texts, texts, max_size=2),
)


@settings(deadline=None, max_examples=100)
@given(st.lists(dialogues, min_size=1, max_size=5))
def test_round_trip(tmp_path_factory, given):
    path = tmp_path_factory.mktemp("round") / "d.jsonl"
    write_dialogues(path, given)
    found = read_dialogues(path)
    assert (
        found == given
        and [d.labels for d in found] == [d.labels for d in given]
        and [d.id for d in found] == [d.id for d in given]
    )


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"]), st.booleans())
def test_no_bytes_make_anything_but_an_input_error(tmp_path_factory, content, name, skip):
    path = tmp_path_factory.mktemp("fuzz") / name
    path.write_bytes(content)
    try:
        assert len(read_dialogues(path, skip_bad=skip))
    except InputError:
        pass


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=5),
    lambda v: (
        st.lists(v, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "speaker", "utterance", "type", "text"]), v, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([fields for needs, _ in FORMATS.values() for fields in needs]), st.data())
def test_no_values_make_anything_but_an_input_error(tmp_path_factory, fields, data):
    path = tmp_path_factory.mktemp("fuzz") / "a.jsonl"
    path.write_text(json.dumps({f: data.draw(values) for f in fields}))
    try:
        assert len(read_dialogues(path))
    except InputError:
        pass


# splits


def naive_runs(text, size=13):
    words = normalise(text).split()
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_shingles_against_sets_of_words(words):
    text = " ".join(words)
    assert len(np.unique(shingles(word_hashes([text])[0], 4))) == len(naive_runs(text, 4))


def test_paper_stream():
    rows = [
        Dialogue(f"prompt {i % 90}", f"response {i}") for i in range(100)
    ]  # the last ten repeat the first ten prompts
    stream, test = paper_stream(rows)
    assert (
        pairs(stream) == pairs(rows[:10])
        and pairs(test) == pairs(rows[10:90])
        and [d.time for d in stream] == list(range(10))
    )
    assert pairs(paper_stream(rows, seed=3)[0]) == pairs(rows[30:40]) and paper_stream(rows, seed=13) == paper_stream(
        rows, seed=3
    )
    long = " ".join(map(str, range(20)))
    assert paper_stream([Dialogue("a", long), Dialogue("b", "x " + long), Dialogue("c", "d")], share=0.34)[1] == [
        Dialogue("c", "d")
    ]
    for wrong in (dict(share=0), dict(share=1), dict(share=0.001)):
        with pytest.raises(InputError):
            paper_stream(rows, **wrong)
    with pytest.raises(InputError, match="shares its group"):
        paper_stream([Dialogue("a", "b")] * 20)
    with pytest.raises(InputError):
        paper_stream([])


# the chain


def test_episode_length_is_one_over_one_minus_stay():
    for stay in (0.0, 0.5, 0.9):
        _, episode = episodes(np.array([0.6, 0.4]), 100_000, stay, generator(1, "t"))
        assert abs((1 - stay) * 100_000 / (episode[-1] + 1) - 1) < 0.03


def test_correlated_stream():
    pools = {k: [Dialogue(f"{k} {i}?", "a") for i in range(300)] for k in "abc"}
    make = lambda seed, **more: correlated_stream(pools, dict(a=7, b=2, c=1), length=300, seed=seed, **more)
    assert make(3) == make(3) and make(3) != make(4)
    for seed in range(5):
        stream = make(seed, duplicates=dict(a=0.5))
        originals = {d.id: d for d in stream if "copy_of" not in d.labels}
        for d in stream:
            if "copy_of" in d.labels:
                source = originals[d.labels["copy_of"]]
                assert source.time < d.time and source.prompt != d.prompt and source.response == d.response
        for name in "abc":  # originals come in the pool's order, none twice
            came = [int(d.prompt[2:-1]) for d in originals.values() if d.prompt.startswith(name)]
            assert came == list(range(len(came)))
    for wrong in (dict(length=0), dict(stay=1.0), dict(stay=-0.1)):
        with pytest.raises(InputError):
            correlated_stream(pools, dict(a=7, b=2, c=1), **wrong)
    for shares in (dict(a=1), dict(a=-1, b=1, c=1), dict(a=0, b=0, c=0)):
        with pytest.raises(InputError):
            correlated_stream(pools, shares, length=10)


@settings(deadline=None)
@given(texts, st.integers(0, 99))
def test_small_edit_changes_little(prompt, seed):
    edited = small_edit(prompt, np.random.default_rng(seed))
    assert edited != prompt and abs(len(edited) - len(prompt)) <= max(8, len(prompt))


# habits and users

HABITS = [
    brevity(),
    sign_off("Best, Ana"),
    opener("In short:"),
    preferred_words(dict(doctor="physician", use="utilise")),
    lower_case(),
    bullets(),
    steps(),
    emoji("☕"),
]
prose = st.lists(
    st.sampled_from(
        [
            "The doctor.",
            "Use it!",
            "Why?",
            "- one",
            "2) two",
            "e.g. this",
            "Dr. Ray",
            "ok",
            "\n",
            "\n\n",
            "  ",
            "✈",
            "İ",
            "uſe",
            "Best, Ana",
        ]
    ),
    max_size=8,
).map(" ".join)


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
@settings(deadline=None, max_examples=150)
@given(text=st.text(max_size=60) | prose)
def test_laws_of_habits(habit, text):
    said = habit.apply(text)
    assert habit.holds(said) and habit.apply(said) == said


@pytest.mark.parametrize("habit", HABITS, ids=lambda h: h.name)
def test_habits_can_fail(habit):
    assert not habit.holds("A doctor will use it. Twice.")


ROWS = load_samples()


@pytest.mark.parametrize("name", USERS)
def test_every_user_likes_their_own_answers(name):
    someone = USERS[name]
    mine = [r for r in ROWS if (r["source"], r["domain"]) in someone.signal]
    for row in mine:
        wanted = someone.reply(row["response"])
        assert someone.adherence(wanted) == 1 and someone.reply(wanted) == wanted, row["response"]
    plain = np.mean([someone.adherence(r["response"]) for r in mine])
    assert plain < 0.8  # an answer without personalisation misses something


@pytest.mark.parametrize("name", ["nurse", "quiz"])
def test_annotator(name):
    someone = USERS[name]
    stream = user_stream(someone, ROWS, length=200).stream
    for d in stream:
        wanted = someone(d)
        if d.labels["kind"] != "signal":
            assert wanted is None
        elif wanted is not None:
            assert someone(d.answered(wanted)) is None  # what was asked for is accepted
            assert someone(d.answered("I do not know.")) == wanted  # the reference is remembered
    others = [u for u in USERS.values() if not set(u.signal) & set(someone.signal)]
    assert all(u(d) is None for u in others for d in stream)


@pytest.mark.parametrize("signal", [0.1, 0.15, 0.25])
def test_share_of_signal(signal):
    shares = [
        np.mean(
            [d.labels["kind"] == "signal" for d in user_stream(USERS["student"], ROWS, signal=signal, seed=s).stream]
        )
        for s in range(4)
    ]
    assert all(abs(s - signal) < signal / 2 for s in shares) and abs(np.mean(shares) - signal) < signal / 4


@pytest.mark.parametrize("name,seed", [("clinic", 0), ("storyteller", 1), ("quiz", 2)])
def test_user_stream_is_clean_and_repeatable(name, seed):
    data = user_stream(USERS[name], ROWS, seed=seed)
    assert (
        data == user_stream(USERS[name], ROWS, seed=seed)
        and data.stream != user_stream(USERS[name], ROWS, seed=seed + 7).stream
    )
    tests = data.test_signal + data.test_rare + data.test_keep
    assert min(map(len, (data.test_signal, data.test_rare, data.test_keep))) >= 60
    assert not {dialogue_group(d) for d in tests} & {dialogue_group(d) for d in data.stream}
    assert all(is_reserved(dialogue_group(d)) for d in tests + data.stream)
    rows = lambda found: [dict(prompt=d.prompt, response=d.response) for d in found]
    assert leak_audit(rows(data.stream), rows(tests))["pairs_shared"] == 0
    assert all({"kind", "domain", "source", "licence"} <= set(d.labels) for d in tests + data.stream)
    assert {d.origin for d in tests} == {"user"} and {d.origin for d in data.stream} == {"model"}
    talk = [d for d in data.stream if d.labels["kind"] == "small talk"]
    assert 0.2 < np.mean(["copy_of" in d.labels for d in talk]) < 0.4


def test_samples_are_reserved_short_and_licensed():
    for row in ROWS:
        assert (
            is_reserved(group_of(row))
            and row["licence"]
            and len(row["prompt"]) <= 500
            and 0 < len(row["response"]) <= 400
        )
    with pytest.raises(InputError, match="no sample called"):
        load_samples("nothing")


def test_chats_are_readable():
    from personal_llm.base.files import ASSETS

    found = read_dialogues(ASSETS / "samples" / "chats.jsonl")
    assert found.format == "messages" and len(found) == 300 and not found.skipped


def test_held_out_by_each_reason():
    labelled = lambda prompt, group: Dialogue(prompt, "r", labels=dict(group=group))
    stream = [labelled("first", "a"), Dialogue("same words?", "r"), Dialogue("x", " ".join(map(str, range(13))))]
    refused = [
        labelled("other", "a"),
        labelled("Same, words", "b"),
        Dialogue("y", "and " + " ".join(map(str, range(13)))),
    ]
    assert held_out(refused, stream) == [] and len(held_out(refused, [])) == 3
    fine = [labelled("other", "c"), Dialogue("y", " ".join(map(str, range(12))))]
    assert held_out(fine, stream) == fine


def test_only_whole_words_are_replaced():
    assert preferred_words(dict(use="utilise")).apply("Because users use it") == "Because users utilise it"
