"""Chat templates in the shapes that models use, written for the tests, and the tokens they need."""

# ruff: noqa: E501 - a line break would be part of a template

from __future__ import annotations

CHATML = """\
{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nBe kind.<|im_end|>\\n' }}{%- endif -%}
{%- for m in messages -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content }}
{%- for call in m.tool_calls or [] -%}{{ '<call>' + (call.function | tojson) + '</call>' }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

LLAMA3 = """\
{{- bos_token -}}
{%- for m in messages -%}
{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

# Keeps the reasoning of turns after the last user turn, drops it before.
QWEN3 = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
{%- set words = m.content -%}
{%- if m.role == 'assistant' -%}
{%- set reasoning = '' -%}
{%- if '</think>' in words -%}
{%- set reasoning = words.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set words = words.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if loop.index0 > ns.last and (loop.last or reasoning) -%}
{%- set words = '<think>\\n' + reasoning + '\\n</think>\\n\\n' + words -%}
{%- endif -%}
{%- endif -%}
{{ '<|im_start|>' + ('user' if m.role == 'tool' else m.role) + '\\n' + words }}
{%- for call in m.tool_calls or [] -%}{{ '<tool_call>\\n' + (call.function | tojson) + '\\n</tool_call>' }}{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

GEMMA = """\
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# The system prompt goes into the first user turn.
GEMMA_MERGED = """\
{{- bos_token -}}
{%- set first = '' -%}{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}{%- endif -%}
{%- for m in turns -%}
{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}
{{- (first if loop.first else '') + (m.content | trim) + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# No generation prompt, no mark before the answer; the system prompt goes into the last user turn.
MISTRAL = """\
{{- bos_token -}}
{%- set sys = '' -%}{%- set turns = messages -%}
{%- if messages[0].role == 'system' -%}{%- set sys = messages[0].content + '\\n\\n' -%}{%- set turns = messages[1:] -%}{%- endif -%}
{%- set ns = namespace(last=0) -%}
{%- for m in turns -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in turns -%}
{%- if m.role == 'user' -%}{{ '[INST] ' + (sys if loop.index0 == ns.last else '') + m.content + '[/INST]' }}
{%- else -%}{{ ' ' + m.content + eos_token }}{%- endif -%}
{%- endfor -%}
"""

# Ends a conversation, but not each of its turns, with EOS.
PHI3 = """\
{%- for m in messages -%}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- else -%}{{ eos_token }}{%- endif -%}
"""

# The generation prompt opens the reasoning; finished turns have lost theirs.
R1 = """\
{{- bos_token -}}
{%- for m in messages -%}
{%- if m.role == 'user' -%}{{ '<|User|>' + m.content }}
{%- else -%}{{ '<|Assistant|>' + m.content.split('</think>')[-1].strip() + eos_token }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
"""

# Plain words, no special token: a turn ends with a line break.
PLAIN = """\
{%- for m in messages -%}{{ m.role + ': ' + m.content + '\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}
"""

SPECIAL_TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|end|>",
    "<|User|>",
    "<|Assistant|>",
]
