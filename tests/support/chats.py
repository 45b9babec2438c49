"""Chat templates of several manners, in words of the tiny models, and models that have one."""

import tiny

_SAID = "{% set said = {'system': 'a', 'user': 'the', 'assistant': 'very'}[m['role']] %}"
_TURN = _SAID + "{{ '<s> ' + said + ' ' + m['content'] + ' </s> ' }}"
CHATML = (
    "{% for m in messages %}"
    + _TURN
    + "{% endfor %}{% if add_generation_prompt %}{{ '<s> very ' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "no system": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + CHATML.replace("m['content']", "(m['content'] | trim)"),
    "thinking": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]").replace(
        "'<s> very '", "'<s> very ' + ('' if enable_thinking | default(true) else '<think> </think> ')"
    ),
    "always thinking": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]").replace(
        "'<s> very '", "'<s> very <think> '"
    ),
    "no header": "{% for m in messages %}" + _TURN + "{% endfor %}",
    "no header at all": "{{ '<s> ' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'cast ' + m['content'] + ' but ' }}"
    "{% else %}{{ m['content'] + ' </s> ' }}{% endif %}{% endfor %}",
    "drops the text": "{% for m in messages %}{{ '<s> the </s> ' }}{% endfor %}",
    "changes the text": CHATML.replace("m['content']", "(m['content'] | upper)"),
    "drops the system": "{% for m in messages if m['role'] != 'system' %}" + CHATML.partition("%}")[2],
}


def chatting(family="gpt2", template="chatml", **options):
    """A tiny model whose tokenizer has this chat template."""
    model = tiny.bridge(family, **options)
    model.tokenizer.chat_template = TEMPLATES[template]
    return model


def messages(text, chat):
    """What ``apply_chat_template`` takes for a text in a chat."""
    said = [("system", chat.system), ("user", text), ("assistant", chat.assistant)]
    return [{"role": role, "content": content} for role, content in said if content is not None]


def applied(tokenizer, text, chat):
    """The ids that the tokenizer itself gives, by its own template."""
    how = {"add_generation_prompt": True} if chat.assistant is None else {"continue_final_message": True}
    return tokenizer.apply_chat_template(messages(text, chat), tokenize=True, **how, **chat.options)[
        "input_ids"
    ]
