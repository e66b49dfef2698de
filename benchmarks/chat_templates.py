"""Chat templates of the workloads, in the styles of published ones."""

from __future__ import annotations

# Turns bounded by special tokens.
PLAIN = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

# Thinking switched off the way that most thinking models do it: the prompt ends in an empty
# thought, which no later prompt shows again.
THINKING = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {{- message.content.split('</think>')[-1] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
"""

# Tools told in front, results as turns of their own.
TOOLS = (
    """\
{{- '<|im_start|>system\\nYou can call these functions:\\n' }}
{%- for tool in tools or [] %}
    {{- tool.function.name + ': ' + tool.function.description + '\\n' }}
{%- endfor %}
{{- 'Say which one you need.<|im_end|>\\n' }}
"""
    + PLAIN
)

CHAT_TEMPLATES = {"plain": PLAIN, "thinking": THINKING, "tools": TOOLS}
