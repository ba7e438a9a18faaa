"""Chat templates of many models in their shapes, written for the tests, each with marks around what is learnt.

`LEARN` stands where the model begins to speak and `STOP` behind the mark that ends its turn; `unmarked` takes both
out. A test renders with them to know what must be learnt, by the template itself and not by the code it tests.
"""

# ruff: noqa: E501 - a line break would be part of a template

from __future__ import annotations

LEARN, STOP = "\u27ea", "\u27eb"
N = "{{ '\\n' }}"


def unmarked(template: str) -> str:
    """Return the template as a model would bring it."""
    return template.replace(LEARN, "").replace(STOP, "")


def turns(prompt: str, head: str = "", foot: str = "", **roles: str) -> str:
    """Return a template from what it writes for each role; other roles are left out."""
    cases = "".join(
        f"{{% {'if' if i == 0 else 'elif'} m.role == '{role}' %}}{text}"
        for i, (role, text) in enumerate(roles.items())
    )
    return (
        f"{head}{{% for m in messages %}}{cases}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{prompt}{{% else %}}{foot}{{% endif %}}"
    )


WORDS = "{{ m.content }}"
TRIMMED = "{{ m.content | trim }}"
LAST_ASKED = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
)
PARSED = (
    "{% set words = m.content %}{% set thought = m.reasoning_content or '' %}"
    "{% if not thought and '</think>' in words %}"
    "{% set thought = words.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{% set words = words.split('</think>')[-1].lstrip('\\n') %}{% endif %}"
)
PIECES = "{% set words = (m.content if m.content is string else m.content | map(attribute='text') | join) | trim if m.content else '' %}"
TOOLS = "{% for t in tools or [] %}<tools>{{ t | tojson }}</tools>{% endfor %}"
JSON_CALLS = "{% for c in m.tool_calls or [] %}<tool_call>\\n{{ c.function | tojson }}\\n</tool_call>{% endfor %}".replace(
    "\\n", N
)
XML_CALLS = (
    "{% for c in m.tool_calls or [] %}<tool_call><function={{ c.function.name }}>{% for k, v in c.function.arguments | items %}"
    "<parameter={{ k }}>{{ v if v is string else v | tojson }}</parameter>{% endfor %}</function></tool_call>{% endfor %}"
)
IM = {role: f"<|im_start|>{role}{N}{WORDS}<|im_end|>{N}" for role in ("system", "user", "tool")}
AI = f"<|im_start|>assistant{N}"
LLAMA = {
    role: f"<|start_header_id|>{role}<|end_header_id|>{N}{N}{TRIMMED}<|eot_id|>"
    for role in ("system", "user")
}
AFTER = "{% if loop.previtem is defined and loop.previtem.role == 'assistant' %}" + STOP + "{% endif %}"


def glm(assistant: str, prompt: str) -> str:
    """Return a template without end marks: the token of the next role stops the model."""
    roles = {
        role: f"<|{name}|>{AFTER}{N}{WORDS}" for role, name in (("user", "user"), ("tool", "observation"))
    }
    head = f"[gMASK]<sop>{{% if tools %}}<|system|>{TOOLS}{{% endif %}}{LAST_ASKED}"
    return turns(prompt, head, STOP, system=f"<|system|>{AFTER}{N}{WORDS}", assistant=assistant, **roles)


SHAPES = {
    "chatml": turns(AI, assistant=f"{AI}{LEARN}{WORDS}<|im_end|>{STOP}{N}", **IM),
    "qwen25": turns(
        AI,
        "{% if messages[0].role != 'system' %}<|im_start|>system\\nBe kind.<|im_end|>\\n{% endif %}".replace(
            "\\n", N
        )
        + TOOLS,
        assistant=f"{AI}{LEARN}{WORDS}{JSON_CALLS}<|im_end|>{STOP}{N}",
        **IM,
    ),
    "qwen3": turns(
        AI,
        TOOLS + LAST_ASKED,
        assistant=f"{PARSED}{AI}{LEARN}{{% if loop.index0 > ns.last and (loop.last or thought) %}}<think>{N}{{{{ thought }}}}"
        f"{N}</think>{N}{N}{{% endif %}}{{{{ words }}}}{JSON_CALLS}<|im_end|>{STOP}{N}",
        **IM,
    ),
    "qwen3_thinking": turns(
        f"{AI}<think>{N}",
        TOOLS + LAST_ASKED,
        assistant=f"{PARSED}{AI}{{% if loop.index0 > ns.last %}}<think>{N}{LEARN}{{{{ thought }}}}{N}</think>{N}{N}"
        f"{{% else %}}{LEARN}{{% endif %}}{{{{ words }}}}{XML_CALLS}<|im_end|>{STOP}{N}",
        **IM,
    ),
    "qwen3_empty_thought": turns(
        f"{AI}<think>{N}{N}</think>{N}{N}",
        TOOLS,
        assistant=f"{AI}<think>{N}{N}</think>{N}{N}{LEARN}{WORDS}{XML_CALLS}<|im_end|>{STOP}{N}",
        **IM,
    ),
    "qwen35": turns(
        f"{AI}<think>{N}",
        f"{{% if tools %}}<|im_start|>system{N}# Tools{N}{TOOLS}{{% if messages[0].role == 'system' %}}{N}{N}"
        f"{{{{ messages[0].content | trim }}}}{{% endif %}}<|im_end|>{N}{{% endif %}}{LAST_ASKED}",
        system="{% if not loop.first %}{{ raise_exception('System message must be at the beginning.') }}{% elif not tools %}"
        f"<|im_start|>system{N}{TRIMMED}<|im_end|>{N}{{% endif %}}",
        user=f"<|im_start|>user{N}{PIECES}{{{{ words }}}}<|im_end|>{N}",
        tool="{% if loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
        f"{N}<tool_response>{N}{PIECES}{{{{ words }}}}{N}</tool_response>"
        f"{{% if loop.last or loop.nextitem.role != 'tool' %}}<|im_end|>{N}{{% endif %}}",
        assistant=f"{PIECES}{{% set thought = (m.reasoning_content or '') | trim %}}"
        "{% if not thought and '</think>' in words %}"
        "{% set thought = words.split('</think>')[0].split('<think>')[-1] | trim %}"
        "{% set words = words.split('</think>')[-1] | trim %}{% endif %}"
        f"{AI}{{% if loop.index0 > ns.last %}}<think>{N}{LEARN}{{{{ thought }}}}{N}</think>{N}{N}"
        f"{{% else %}}{LEARN}{{% endif %}}{{{{ words }}}}{{% for c in m.tool_calls or [] %}}"
        f"{{% if loop.first and words %}}{N}{N}{{% elif not loop.first %}}{N}{{% endif %}}<tool_call>{N}"
        f"<function={{{{ c.function.name }}}}>{N}{{% for k, v in c.function.arguments | items %}}<parameter={{{{ k }}}}>{N}"
        f"{{{{ v if v is string else v | tojson }}}}{N}</parameter>{N}{{% endfor %}}</function>{N}</tool_call>{{% endfor %}}"
        f"<|im_end|>{STOP}{N}",
    ),
    "deepseek_r1": turns(
        f"<|Assistant|><think>{N}",
        "<|begin_of_sentence|>",
        system=WORDS,
        user=f"<|User|>{WORDS}",
        tool=f"<|tool_output_begin|>{WORDS}<|tool_output_end|>",
        assistant=f"<|Assistant|>{LEARN}{{{{ m.content.split('</think>')[-1].strip() }}}}{{% for c in m.tool_calls or [] %}}"
        "<|tool_call_begin|>{{ c.function.name + '<|tool_sep|>' + c.function.arguments }}<|tool_call_end|>{% endfor %}"
        f"<|end_of_sentence|>{STOP}",
    ),
    "deepseek_v31": turns(
        "<|Assistant|></think>",
        "<|begin_of_sentence|>",
        system=WORDS,
        user=f"<|User|>{WORDS}",
        assistant=f"<|Assistant|></think>{LEARN}{WORDS}<|end_of_sentence|>{STOP}",
    ),
    "deepseek_tools_unheaded": turns(
        "{% if messages[-1].role != 'tool' %}<|Assistant|>{% endif %}",
        "<|begin_of_sentence|>" + TOOLS,
        system=WORDS,
        user=f"<|User|>{WORDS}",
        tool=f"<|tool_output_begin|>{WORDS}<|tool_output_end|>",
        assistant="{% if loop.previtem is not defined or loop.previtem.role != 'tool' %}<|Assistant|>{% endif %}"
        f"{LEARN}{WORDS}{JSON_CALLS}<|end_of_sentence|>{STOP}",
    ),
    "glm4": glm(f"<|assistant|>{N}{LEARN}{WORDS}{JSON_CALLS}", f"<|assistant|>{N}"),
    "glm45": glm(
        f"{PARSED}<|assistant|>{LEARN}{{% if loop.index0 > ns.last %}}{N}<think>{{{{ thought }}}}</think>{{% endif %}}"
        f"{N}{{{{ words }}}}{JSON_CALLS}",
        "<|assistant|>",
    ),
    "gpt_oss": turns(
        "<|start|>assistant",
        "<|start|>system<|message|>Channels: analysis, final.<|end|>"
        "{% for t in tools or [] %}<|start|>developer<|message|>{{ t | tojson }}<|end|>{% endfor %}",
        system=f"<|start|>developer<|message|>{WORDS}<|end|>",
        developer=f"<|start|>developer<|message|>{WORDS}<|end|>",
        user=f"<|start|>user<|message|>{WORDS}<|end|>",
        tool=f"<|start|>functions to=assistant<|channel|>commentary<|message|>{WORDS}<|end|>",
        assistant=f"<|start|>assistant{LEARN}{{% if m.thinking %}}<|channel|>analysis<|message|>{{{{ m.thinking }}}}<|end|>"
        "<|start|>assistant{% endif %}{% if m.tool_calls %} to=functions.{{ m.tool_calls[0].function.name }}"
        "<|channel|>commentary json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
        f"{{% else %}}<|channel|>final<|message|>{WORDS}{{{{ '<|return|>' if loop.last else '<|end|>' }}}}{{% endif %}}{STOP}",
    ),
    "mistral_v1": turns("", "<s>", user=f"[INST] {WORDS} [/INST]", assistant=f"{LEARN}{WORDS}</s>{STOP} "),
    "mistral_v3": turns(
        "",
        "<s>{% for t in tools or [] %}[AVAILABLE_TOOLS]{{ t | tojson }}[/AVAILABLE_TOOLS]{% endfor %}",
        user=f"[INST] {WORDS}[/INST]",
        tool=f"[TOOL_RESULTS]{WORDS}[/TOOL_RESULTS]",
        assistant=f"{LEARN}{{% if m.tool_calls %}}[TOOL_CALLS]{{% for c in m.tool_calls %}}{{{{ c.function | tojson }}}}"
        f"{{% endfor %}}{{% else %}} {WORDS}{{% endif %}}</s>{STOP}",
    ),
    "mistral_v7": turns(
        "",
        "<s>",
        system=f"[SYSTEM_PROMPT]{WORDS}[/SYSTEM_PROMPT]",
        user=f"[INST]{WORDS}[/INST]",
        assistant=f"{LEARN}{WORDS}</s>{STOP}",
    ),
    "mistral_v13": turns(
        "",
        "<s>",
        system=f"[SYSTEM_PROMPT]{WORDS}[/SYSTEM_PROMPT]",
        user=f"[INST]{WORDS}[/INST]",
        assistant=f"{LEARN}{{% if m.reasoning_content %}}[THINK]{{{{ m.reasoning_content }}}}[/THINK]{{% endif %}}{WORDS}"
        f"{{% for c in m.tool_calls or [] %}}[TOOL_CALLS]{{{{ c.function.name }}}}[ARGS]{{{{ c.function.arguments | tojson }}}}"
        f"{{% endfor %}}</s>{STOP}",
    ),
    "mistral_late_system": turns(
        "",
        "<s>{% set ns = namespace(said='') %}" + LAST_ASKED.replace("ns", "at"),
        system="{% set ns.said = m.content + '\\n\\n' %}",
        user="[INST] {{ ns.said if loop.index0 == at.last else '' }}{{ m.content }}[/INST]",
        assistant=f"{LEARN} {WORDS}</s>{STOP}",
    ),
    "llama2": turns(
        "",
        "{% set ns = namespace(said='') %}",
        system="{% set ns.said = '<<SYS>>\\n' + m.content + '\\n<</SYS>>\\n\\n' %}",
        user="<s>[INST] {{ ns.said + m.content }} [/INST]{% set ns.said = '' %}",
        assistant=f"{LEARN} {WORDS} </s>{STOP}",
    ),
    "llama3": turns(
        f"<|start_header_id|>assistant<|end_header_id|>{N}{N}",
        "<|begin_of_text|>",
        assistant=f"<|start_header_id|>assistant<|end_header_id|>{N}{N}{LEARN}{TRIMMED}<|eot_id|>{STOP}",
        **LLAMA,
    ),
    "llama31": turns(
        f"<|start_header_id|>assistant<|end_header_id|>{N}{N}",
        "<|begin_of_text|>" + TOOLS,
        tool=f"<|start_header_id|>ipython<|end_header_id|>{N}{N}{{{{ m.content | tojson }}}}<|eot_id|>",
        assistant=f"<|start_header_id|>assistant<|end_header_id|>{N}{N}{LEARN}{{% if m.tool_calls %}}"
        '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
        f"<|eom_id|>{{% else %}}{TRIMMED}<|eot_id|>{{% endif %}}{STOP}",
        **LLAMA,
    ),
    "llama4": turns(
        f"<|header_start|>assistant<|header_end|>{N}{N}",
        "<|begin_of_text|>",
        system=f"<|header_start|>system<|header_end|>{N}{N}{TRIMMED}<|eot|>",
        user=f"<|header_start|>user<|header_end|>{N}{N}{{% for p in m.content %}}{{{{ p.text | trim }}}}{{% endfor %}}<|eot|>".replace(
            "m.content", "([{'text': m.content}] if m.content is string else m.content)"
        ),
        assistant=f"<|header_start|>assistant<|header_end|>{N}{N}{LEARN}{TRIMMED}<|eot|>{STOP}",
    ),
    "parts_only": turns(
        AI,
        system=f"<|im_start|>system{N}{{{{ m.content[0]['text'] }}}}<|im_end|>{N}",
        user=f"<|im_start|>user{N}{{% for p in m.content %}}{{{{ p['text'] }}}}{{% endfor %}}<|im_end|>{N}",
        assistant=f"{AI}{LEARN}{{% for p in m.content %}}{{{{ p['text'] }}}}{{% endfor %}}<|im_end|>{STOP}{N}",
    ),
    "gemma2": turns(
        f"<start_of_turn>model{N}",
        "<bos>{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
        user=f"<start_of_turn>user{N}{TRIMMED}<end_of_turn>{N}",
        assistant=f"<start_of_turn>model{N}{LEARN}{TRIMMED}<end_of_turn>{STOP}{N}",
    ),
    "gemma3": turns(
        f"<start_of_turn>model{N}",
        "<bos>{% set ns = namespace(said='') %}",
        system="{% set ns.said = m.content + '\\n\\n' %}",
        user=f"<start_of_turn>user{N}{{{{ ns.said }}}}{TRIMMED}<end_of_turn>{N}{{% set ns.said = '' %}}",
        assistant=f"<start_of_turn>model{N}{LEARN}{TRIMMED}<end_of_turn>{STOP}{N}",
    ),
    "phi3": turns(
        f"<|assistant|>{N}",
        "",
        "<|endoftext|>" + STOP,
        system=f"<|system|>{N}{WORDS}<|end|>{N}",
        user=f"<|user|>{N}{WORDS}<|end|>{N}",
        assistant=f"<|assistant|>{N}{LEARN}{WORDS}<|end|>{{% if not loop.last %}}{STOP}{{% endif %}}{N}",
    ),
    "phi4": turns(
        "<|im_start|>assistant<|im_sep|>",
        system=f"<|im_start|>system<|im_sep|>{WORDS}<|im_end|>",
        user=f"<|im_start|>user<|im_sep|>{WORDS}<|im_end|>",
        assistant=f"<|im_start|>assistant<|im_sep|>{LEARN}{WORDS}<|im_end|>{STOP}",
    ),
    "olmo3": turns(
        f"{AI}<think>",
        system=f"<|im_start|>system{N}{WORDS}{{% if tools %}}<functions>{{{{ tools | tojson }}}}</functions>{{% endif %}}<|im_end|>{N}",
        user=IM["user"],
        assistant=f"{AI}{{% if m.content.startswith('<think>') and '</think>' in m.content %}}<think>{LEARN}{{{{ m.content[7:] }}}}{{% else %}}{LEARN}{WORDS}"
        "{% endif %}{% if loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}" + STOP + N,
    ),
    "smollm3": turns(
        f"{AI}<think>{N}{N}</think>{N}",
        f"<|im_start|>system{N}Reasoning: off.{N}{TOOLS}<|im_end|>{N}",
        assistant=f"{AI}<think>{N}{N}</think>{N}{LEARN}{TRIMMED}{JSON_CALLS}<|im_end|>{STOP}{N}",
        **IM,
    ),
    "granite4": turns(
        "<|start_of_role|>assistant<|end_of_role|>",
        TOOLS,
        system=f"<|start_of_role|>system<|end_of_role|>{WORDS}<|end_of_text|>{N}",
        user=f"<|start_of_role|>user<|end_of_role|>{WORDS}<|end_of_text|>{N}",
        tool=f"<|start_of_role|>user<|end_of_role|>{N}<tool_response>{N}{WORDS}{N}</tool_response><|end_of_text|>{N}",
        assistant=f"<|start_of_role|>assistant<|end_of_role|>{LEARN}{WORDS}{JSON_CALLS}<|end_of_text|>{STOP}{N}",
    ),
    "nemotron": turns(
        f"<SPECIAL_11>Assistant{N}<think>{N}",
        f"<SPECIAL_10>System{N}",
        system=f"{WORDS}{N}",
        user=f"<SPECIAL_11>User{N}{WORDS}{N}",
        assistant=f"<SPECIAL_11>Assistant{N}{LEARN}{{{{ m.content.split('</think>')[-1].strip() }}}}{N}<SPECIAL_12>{STOP}{N}",
    ),
    "kimi_k2": turns(
        "<|im_assistant|>assistant<|im_middle|>",
        "{% if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif %}",
        system=f"<|im_system|>system<|im_middle|>{WORDS}<|im_end|>",
        user=f"<|im_user|>user<|im_middle|>{WORDS}<|im_end|>",
        tool=f"<|im_system|>tool<|im_middle|>{WORDS}<|im_end|>",
        assistant=f"<|im_assistant|>assistant<|im_middle|>{LEARN}{WORDS}{{% for c in m.tool_calls or [] %}}"
        "<|tool_call_begin|>{{ c.function.name }}<|tool_call_argument_begin|>"
        "{% if c.function.arguments is string %}{{ c.function.arguments }}{% else %}{{ c.function.arguments | tojson }}{% endif %}"
        f"<|tool_call_end|>{{% endfor %}}<|im_end|>{STOP}",
    ),
    "minimax_m2": turns(
        f"]~b]ai{N}<think>{N}",
        f"]~!b[]~b]system{N}You help.{TOOLS}[e~[{N}" + LAST_ASKED,
        system=f"]~b]system{N}{WORDS}[e~[{N}",
        user=f"]~b]user{N}{WORDS}[e~[{N}",
        tool=f"]~b]tool{N}<response>{WORDS}</response>[e~[{N}",
        assistant=f"]~b]ai{N}{{% if m.reasoning_content and loop.index0 > ns.last %}}<think>{N}{LEARN}{{{{ m.reasoning_content }}}}"
        f"{N}</think>{N}{N}{{% else %}}{LEARN}{{% endif %}}{WORDS}{XML_CALLS}[e~[{STOP}{N}",
    ),
    "command_r": turns(
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "<BOS_TOKEN>",
        system=f"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{WORDS}<|END_OF_TURN_TOKEN|>",
        user=f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{WORDS}<|END_OF_TURN_TOKEN|>",
        assistant=f"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{LEARN}{WORDS}<|END_OF_TURN_TOKEN|>{STOP}",
    ),
    "zephyr": turns(
        f"<|assistant|>{N}",
        system=f"<|system|>{N}{WORDS}</s>{N}",
        user=f"<|user|>{N}{WORDS}</s>{N}",
        assistant=f"<|assistant|>{N}{LEARN}{WORDS}</s>{STOP}{N}",
    ),
    "vicuna": turns(
        "ASSISTANT:",
        system=f"{WORDS} ",
        user=f"USER: {WORDS} ",
        assistant=f"ASSISTANT:{LEARN} {WORDS}</s>{STOP}",
    ),
    "alpaca": turns(
        f"### Response:{N}",
        system=f"{WORDS}{N}{N}",
        user=f"### Instruction:{N}{WORDS}{N}{N}",
        assistant=f"### Response:{N}{LEARN}{WORDS}</s>{STOP}{N}{N}",
    ),
    "answers_cut": turns(
        AI, assistant=f"{AI}{LEARN}{{{{ m.content.split('</think>')[-1] }}}}<|im_end|>{STOP}{N}", **IM
    ),
}
"""By name; written from descriptions of the models' formats, shortened to what decides the marks."""
