from personal_llm.buffer.policies import Policy, register_policy
from personal_llm.data.formats import ParsedConversation, RecordFormat


def parse(record):
    pairs = [line.split(" = ") for line in record[".cards"].splitlines()]
    return [ParsedConversation([("user", front), ("assistant", back)], is_row=False) for front, back in pairs]


CARDS = RecordFormat(([".cards"],), parse)


class NewestPolicy(Policy):
    def choose(self, view, candidate):
        return 0, "it is the newest"


class Needy(NewestPolicy):
    def __init__(self, number):
        self.number = number


@register_policy("registered")
class Registered(NewestPolicy):
    pass


@register_policy("random")
class Thief(NewestPolicy):
    pass
