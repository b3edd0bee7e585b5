"""A language model that learns its user, on the user's own device.

`from personal_llm import Buffer, load_model, …` gives the names below. A room is imported when the first of its
names is asked for, so that `import personal_llm` costs nothing. The rooms themselves (`personal_llm.buffer.buffer`)
can be imported as well.
"""

__version__ = "1.0.0"

_ROOMS = {
    "base.core": "Cost Dialogue InputError",
    "base.encoder": "load_encoder",
    "base.replies": "Model ReplyOptions load_model",  # with `Model.reply`
    "base.adapters": "Adapter",
    "data.reading": "read_dialogues load_samples",
    "data.splits": "remove_leaks split_test_dialogues",
    "data.streams": "correlated_stream",
    "buffer.scoring": "dominant_domain domain_specific_score entropy_of_embedding in_domain_dissimilarity score "
    "Lexicons load_lexicons",
    "buffer.policies": "POLICIES Policy",
    "buffer.buffer": "Buffer check_policy",
    "buffer.synthesis": "synthesize",
    "memory.gate": "Evidence belongs judge",
    "tuning.config": "TuningConfig",
    "tuning.finetune": "finetune",
    "tuning.statistics": "paired_bootstrap",
    "tuning.evaluation": "evaluate",
    "explanation.explanation": "Explanation explain explain_pllm",
    "selection.library": "Library",
    "selection.ranking": "Ranking",
    "selection.merging": "merge",
    "selection.selection": "SELECTORS select warm_start",
    "device.forgetting": "forget_everything",
    "device.personalizer": "Personalizer PersonalizerSettings",
    "device.chat": "ChatSession",
    "app.demo": "run_demo",
    "app.personalize": "personalize",
    "extras.space": "StyleSpace",  # of an act that the core never imports
    "extras.reproduce": "compare_policies compare_selectors",
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names.split()}
__all__ = sorted(_ROOM_OF)


def __getattr__(name):
    "Import a public name's room when it is first asked for."
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'personal_llm' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"personal_llm.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
