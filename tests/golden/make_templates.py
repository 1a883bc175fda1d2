#!/usr/bin/env python3
"""Makes templates.json: chat templates, written here in the style of real models, and what the reference renders.

    python tests/golden/make_templates.py

Needs transformers 5.23, jinja2 and tokenizers. The file holds `templates` (name -> text) and `rows`, each with
`name`, `template` (a name), `messages`, `tools` (null: none), `add_generation_prompt`, `variables` (bos_token,
eos_token and whatever else the template may see) and one of

    rendered   the text
    error      the message given to raise_exception
    fails      the class of another error (undefined values, the sandbox, ...): only the failure counts

`expressions` holds the single expressions of the larger rows, so that a difference is easy to find: `of` (the row
whose messages and variables it sees), `text` (a whole template) and `rendered`.

`messages` are as a user gives them: before the template sees them, the reference drops the keys of a message
whose value is null, and copies `reasoning_content`, `thinking` or `reasoning` to `reasoning_content` and `thinking`.
"""
import json
import re
from pathlib import Path

from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
SPLIT = ["tests", "filters", "strings", "strings: non-ASCII", "dicts", "numbers", "tojson"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

T = {}
T["chatml"] = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
T["chatml-default-system"] = """{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ (message.content | trim) ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt is defined and add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
T["llama2"] = """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
T["llama2-namespace"] = """{%- set ns = namespace(system='', first=true, turns=0) -%}
{%- for message in messages -%}
  {%- if message.role == 'system' -%}
    {%- set ns.system = ns.system + message.content + '\\n' -%}
  {%- elif message.role == 'user' -%}
    {%- if ns.first and ns.system -%}
      {{- bos_token }}[INST] <<SYS>>
{{ ns.system | trim }}
<</SYS>>

{{ message.content }} [/INST]
    {%- else -%}
      {{- bos_token }}[INST] {{ message.content }} [/INST]
    {%- endif -%}
    {%- set ns.first = false -%}
    {%- set ns.turns = ns.turns + 1 -%}
  {%- elif message.role == 'assistant' %} {{ message.content }} {{ eos_token -}}
  {%- else -%}
    {{- raise_exception('Only system, user and assistant roles are supported, not ' ~ message.role ~ '!') -}}
  {%- endif -%}
{%- endfor -%}
{#- turns are counted -#}
{%- if ns.turns == 0 %}{{ raise_exception('No user message') }}{% endif -%}
"""
T["llama3"] = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- the system message #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {{- "You may call these functions:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {{- "Answer with a JSON call of one of these functions.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first_user_message + "<|eot_id|>"}}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
T["mistral-tools"] = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{#- calls and results do not count in the alternation #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant/user/assistant/...") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
"""
T["gemma"] = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
' + message['content'] | trim + '<end_of_turn>
' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
'}}{% endif %}"""
T["gemma3"] = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
T["phi3"] = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""
T["phi4-mini"] = """{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"""
T["qwen-tools"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\nSignatures are given within <tools></tools> tags:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
T["qwen3-think"] = """{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or message.role == "system" %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
T["zephyr"] = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
T["deepseek"] = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and message['content'] is none %}{{'<none>'}}{%- elif message['role'] == 'assistant' and message['content'] is not defined %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls']%}{%- if not ns.is_first %}{{'<｜Assistant｜><｜calls▁begin｜>' + tool['type'] + '<｜sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```'}}{%- set ns.is_first = true -%}{%- else %}{{'\\n' + tool['function']['name']}}{%- endif %}{%- endfor %}{{'<｜calls▁end｜>'}}{%- elif message['role'] == 'assistant' %}{%- if ns.is_tool %}{{'<｜outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}{%- set ns.is_tool = false -%}{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}{%- if ns.is_output_first %}{{'<｜outputs▁begin｜>' + message['content']}}{%- set ns.is_output_first = false %}{%- else %}{{'\\n' + message['content']}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜outputs▁end｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜>'}}{% endif %}"""
T["command-r"] = """{{ bos_token }}
{%- macro document_turn(documents) -%}
<results>
{% for document in documents %}
Document: {{ loop.index0 }}
{% for key, value in document.items() %}
{{ key }}: {{ value }}
{% endfor %}
{% endfor %}</results>
{%- endmacro -%}
{%- macro tool_calls_to_json(calls, start=0) -%}
[
{%- for call in calls %}
    {"id": "{{ start + loop.index0 }}", "name": "{{ call['function']['name'] }}", "arguments": {{ call['function']['arguments']|tojson }}}
{%- if not loop.last %},{% endif %}
{% endfor %}
]
{%- endmacro -%}
{%- if messages[0]['role']|lower == 'system' %}{% set system_prompt = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif -%}
<|START|><|SYSTEM|>{{ system_prompt or '# default preamble' }}<|END|>
{%- for message in messages %}
{%- if message.role|lower == 'user' -%}
<|START|><|USER|>{{ message.content }}<|END|>
{%- if documents and loop.first %}{{ document_turn(documents) }}{% endif %}
{%- elif message.role|lower in ['assistant', 'chatbot'] -%}
<|START|><|BOT|>{% if message.tool_calls %}{{ tool_calls_to_json(message.tool_calls, start=10) }}{% else %}{{ message.content }}{% endif %}<|END|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt -%}<|START|><|BOT|>{%- endif %}"""
T["macros"] = """{%- macro header(role, mark='#', *rest) -%}
{{ mark * 3 }} {{ role | upper }}{% if varargs %} {{ varargs | join('/') }}{% endif %}{% if rest is defined and rest %}?{% endif %}
{%- endmacro -%}
{%- macro boxed(title) -%}
[{{ title }}: {{ caller('inner') }}]
{%- endmacro -%}
{%- macro render_type(spec, depth=0) -%}
    {%- if spec.type == 'array' -%}
        {{ render_type(spec['items'], depth + 1) }}[]
    {%- elif spec.type == 'object' -%}
        { {%- for k, v in spec.properties.items() %}{{ k }}{{ '' if k in spec.get('required', []) else '?' }}: {{ render_type(v, depth + 1) }}{{ ', ' if not loop.last }}{% endfor -%} }
    {%- else -%}
        {{ spec.type }}{{ '~' ~ depth if depth else '' }}
    {%- endif -%}
{%- endmacro -%}
{%- for m in messages %}
{{ header(m.role) }}
{{ header(m.role, '=', 'a', 'b') if false else header(mark='=', role=m.role) }}
{% call(x) boxed(loop.index) %}{{ x }} {{ m.content }}{% endcall %}
{% endfor %}
{% for tool in tools or [] %}
{{ tool.function.name }}({{ render_type(tool.function.parameters) }})
{% endfor %}"""
T["macros"] = T["macros"].replace(", *rest", "").replace("{% if rest is defined and rest %}?{% endif %}", "").replace("header(m.role, '=', 'a', 'b') if false else ", "")
T["loops"] = """{% for m in messages %}
{{ loop.index }}/{{ loop.length }} {{ loop.index0 }} {{ loop.revindex }} {{ loop.revindex0 }} {{ loop.first }} {{ loop.last }} {{ loop.cycle('odd', 'even') }} {{ loop.changed(m.role) }} prev={{ loop.previtem.role if loop.previtem is defined else 'none' }} next={{ loop.nextitem.role if not loop.last }} depth={{ loop.depth }}
{% endfor %}
{% for m in messages if m.role == 'user' %}{{ loop.index }}:{{ m.content }};{% else %}no user{% endfor %}

{% for x in [] %}never{% else %}empty{% endfor %}

{% for a, b in [(1, 'x'), (2, 'y')] %}{{ a }}{{ b }}{% if not loop.last %},{% endif %}{% endfor %}

{% for i in range(10, 0, -3) %}{{ i }} {% endfor %}

{% for m in messages %}{% set outer = loop %}{% for c in m.content[:2] %}{{ outer.index }}{{ c }}{{ loop.index }} {% endfor %}{% endfor %}"""
T["controls"] = """{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- continue -%}{%- endif -%}
{%- if m.content == 'stop' -%}{%- break -%}{%- endif -%}
{{ loop.index }}={{ m.content }};
{%- for i in range(5) -%}{%- if i is odd -%}{% continue %}{%- endif -%}{{ i }}{%- if i > 2 -%}{% break %}{%- endif -%}{%- endfor -%}|
{%- endfor -%}"""
T["generation"] = """{% for message in messages %}{% if message.role == 'assistant' %}<|a|>{% generation %}{{ message.content }}<|end|>
{% endgeneration %}
{%- else %}<|{{ message.role }}|>{{ message.content }}<|end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|a|>{% generation %}{% endgeneration %}{% endif %}"""
T["whitespace"] = """  {% if true %}
    kept indent
  {%- if true %}  tight  {% endif -%}
  {% endif %}
{# comment on its own line #}
	{% for m in messages %}
	{{ m.content }}
	{%- endfor +%}
{{- '  x  ' -}}
   {%+ if true %}plus{% endif %}

{{ 'y' }}
{% raw %}{{ not rendered }} {% if %} {# kept #}{% endraw %}

{#- tight comment -#}
   end
"""
T["blocks"] = """{% set header %}
<h>{{ messages[0].content | upper }}</h>
{% endset %}
{{ header | trim }}
{% filter upper %}shout {{ messages[0].role }}{% endfilter %}

{% set a, b = 'one', 'two' %}{{ a }}-{{ b }}
{% with x = 3, y = 4 %}{{ x * y }}{% endwith %}{{ x is defined }}
{% set n = 0 %}{% for m in messages %}{% set n = n + 1 %}{% endfor %}{{ n }}
{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}
{% if n == 1 %}one{% elif n == 0 %}zero{% else %}many{% endif %}"""
T["tests"] = """{% for v in values -%}
{{ v is defined }} {{ v is none }} {{ v is string }} {{ v is number }} {{ v is integer }} {{ v is float }} {{ v is boolean }} {{ v is mapping }} {{ v is iterable }} {{ v is sequence }} {{ v is true }} {{ v is false }}
{% endfor %}
{{ missing is defined }} {{ missing is undefined }} {{ missing is not defined }} {{ missing is none }} [{{ missing }}] {{ missing | default('d') }} {{ '' | default('e', true) }} {{ none | default('f') }} {{ none | default('g', true) }}
{{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 'a' in 'cat' }} {{ 'z' not in ['a'] }} {{ 'k' in {'k': 1} }} {{ 3 is eq 3 }} {{ 3 is ne 4 }} {{ 2 is lt 3 }} {{ 2 is in [1, 2] }} {{ 'AB' is upper }} {{ 'ab' is lower }} {{ 3 is sameas 3 }} {{ raise_exception is callable }}
{{ messages[0].nothing is defined }} {{ messages[0]['nothing'] is defined }} {{ messages[0].get('nothing') is none }} {{ messages[0].get('nothing', 'dflt') }}"""
T["filters"] = """{{ words | join(', ') }} {{ words | first }} {{ words | last }} {{ words | length }} {{ words | count }} {{ words | sort | join }} {{ words | sort(reverse=true) | join('-') }} {{ words | reverse | list }} {{ words | map('upper') | join(' ') }} {{ words | unique | list | length }}
{{ users | map(attribute='name') | join('+') }} {{ users | selectattr('admin') | map(attribute='name') | list }} {{ users | rejectattr('admin') | map(attribute='name') | list }} {{ users | selectattr('age', 'gt', 30) | list | length }} {{ users | map(attribute='nick', default='-') | join(',') }} {{ users | sum(attribute='age') }} {{ users | sort(attribute='age') | map(attribute='name') | first }}
{{ words | select('in', ['a', 'bee']) | list }} {{ words | reject('equalto', 'bee') | list }} {{ [1, 0, 2] | select | list }}
{{ 'heLLo wOrld' | title }} {{ 'heLLo wOrld' | capitalize }} {{ '  pad ' | trim }}| {{ 'xxaxx' | trim('x') }} {{ 'a-b-c' | replace('-', '+') }} {{ 'a-b-c' | replace('-', '+', 1) }} {{ 'x' | upper ~ 'Y' | lower }}
{{ 'line one\nline two' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(width=3, first=false, blank=true) }}
{{ '42' | int + 1 }} {{ 'x' | int(7) }} {{ '1.5' | float * 2 }} {{ 3.7 | int }} {{ -3.7 | round }} {{ 3.14159 | round(2) }} {{ -5 | abs }} {{ 7 | string ~ '!' }} {{ [3, 1, 2] | max }} {{ [3, 1, 2] | min }} {{ 'abc' | list }} {{ 'a b c' | wordcount }}
{{ {'b': 2, 'a': 1} | dictsort }} {{ {'b': 2, 'a': 1} | items | list }} {% for k, v in {'b': 1, 'a': 2} | dictsort(by='value') %}{{ k }}={{ v }} {% endfor %}
{% for row in [1, 2, 3, 4, 5] | batch(2, 0) %}{{ row }}{% endfor %} {% for col in [1, 2, 3, 4, 5] | slice(2) %}{{ col }}{% endfor %} {% for g in users | groupby('admin') %}{{ g.grouper }}:{{ g.list | length }} {% endfor %}
{{ '%s has %d (%.2f)' | format('x', 3, 2.5) }} {{ 'abcdefgh' | truncate(6, true, '..', 0) }} {{ '<b>' | e }} {{ '<b>' | safe }} {{ words | tojson }} {{ 'a b' | urlencode }} {{ 'ab' | center(6) }}|"""
T["strings"] = """{% set s = messages[0].content %}
{{ s.strip() }}|{{ s.lstrip() }}|{{ s.rstrip() }}|{{ s.strip(' .') }}|{{ s.upper() }}|{{ s.lower() }}|{{ s.title() }}|{{ s.strip().capitalize() }}|{{ s.swapcase() }}
{{ s.split() }} {{ s.split(' ', 2) }} {{ 'a,b,,c'.split(',') }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'k=v=w'.partition('=') }} {{ 'k=v=w'.rpartition('=') }} {{ 'x\ny\r\nz'.splitlines() }} {{ ''.split(',') }} {{ ''.split() }}
{{ s.startswith('  The') }} {{ s.endswith(('.', '. ')) }} {{ s.startswith(('a', 'b')) }} {{ s.replace('o', '0') }} {{ s.replace('o', '0', 1) }} {{ s.find('quick') }} {{ s.find('zzz') }} {{ s.rfind('o') }} {{ s.count('o') }} {{ s.index('q') }}
{{ '-'.join(['a', 'b']) }} {{ '{} {}'.format('a', 1) }} {{ '{0:>4}|{1:<4}|{name:^5}'.format('r', 'l', name='m') }} {{ '{:.2f} {:03d} {:,}'.format(2.5, 7, 1234567) }} {{ '%s/%s' % ('a', 2) }} {{ '%05.1f' % 2.25 }}
{{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'A'.isupper() }} {{ 'a'.islower() }} {{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.txt'.removesuffix('.txt') }} {{ 'a'.center(5, '*') }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3) }}|
{{ s[2:5] }} {{ s[-4:] }} {{ s[::-1] }} {{ s[0] }}{{ s[-1] }}| {{ s[100:] }}| {{ s[:-1] }}| {{ 'ab' * 3 }} {{ '=' * 0 }}| {{ 'a' ~ 1 ~ none ~ true ~ 1.0 }} {{ 'a' 'b' }} {{ "it's" ~ 'say "hi"' }} {{ 'tab\\there' }} {{ 'x' if s }} {{ 'y' if not s }}|"""
T["dicts"] = """{% set d = {'role': 'user', 'n': 1, 'nested': {'list': [1, 2.0, none, true, 'x']}} %}
{{ d.role }} {{ d['n'] }} {{ d.get('role') }} {{ d.get('zip') }} {{ d.get('zip', 'none given') }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.items() | list }} {{ d | length }} {{ 'role' in d }} {{ 'x' in d.nested.list }}
{{ d }} {{ d.nested.list }} {{ (1, 2) }} {{ (1,) }} {{ () }} {{ [] }} {{ {} }} {{ ["it's", 'say "x"', 'both \\' and "', 'tab\\t nl\\n é 你 \\\\'] }}
{% for k in d %}{{ k }}{{ ',' if not loop.last }}{% endfor %} {% for k, v in d.items() %}{{ k }}:{{ v }};{% endfor %}
{{ dict(a=1, b='x') }} {{ dict(d, n=2).n }} {{ d.copy() == d }} {{ [1, 2] + [3] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][-1] }} {{ [[1, 2], [3]][0][1] }} {{ [1, 2, 3].index(2) }} {{ [1, 1].count(1) }} {{ (1, 2) + (3,) }} {{ [3, 1] == [3, 1] }} {{ [1, 2] < [1, 3] }} {{ {'a': 1} == {'a': 1.0} }}
{{ d.items() | list | last | first }} {{ messages[0].items() | map('first') | join(',') }} {{ d.nested['list'][3] }} {{ d['nested'].list | tojson }} {{ d.missing }}|{{ d['missing'] }}|{{ [1, 2][5] }}|"""
T["numbers"] = """{{ 7 / 2 }} {{ 8 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 2 ** 0.5 }} {{ 1 + 2.0 }} {{ 1.0 }} {{ 0.1 + 0.2 }} {{ 1e16 }} {{ 1e15 }} {{ 123456789.0 }} {{ 1e-4 }} {{ 0.00001 }} {{ 1e22 }} {{ -0.0 }} {{ 1_000 }} {{ 3.0 | int }} {{ true + 1 }} {{ 10 - 3 - 2 }} {{ 2 + 3 * 4 }} {{ (2 + 3) * 4 }} {{ -2 ** 2 }}
{{ true }} {{ false }} {{ none }} {{ True }} {{ None }} {{ not true }} {{ 1 == 1.0 }} {{ 1 < 2 < 3 }} {{ 1 == true }} {{ 'a' < 'b' }} {{ 0 or 'x' }} {{ '' or none }} {{ 1 and 2 }} {{ none or [] }} {{ 5 > 3 and not 2 > 4 }}
{{ values }} {{ values | tojson }}
{% for v in values %}{{ v }};{% endfor %}"""
T["tojson"] = """{{ data | tojson }}
{{ data | tojson(indent=2) }}
{{ data | tojson(separators=(',', ':')) }}
{{ data | tojson(sort_keys=true) }}
{{ data | tojson(ensure_ascii=true) }}
{{ data | tojson(indent=4, ensure_ascii=False) }}
{{ [] | tojson(indent=2) }} {{ {} | tojson(indent=2) }} {{ 'a"b\\\\c\\n\\t/<>&\\u007f' | tojson }} {{ none | tojson }} {{ true | tojson }} {{ 1.0 | tojson }} {{ 1e-7 | tojson }} {{ 1e20 | tojson }} {{ (1, 'x') | tojson }} {{ {1: 'int key', none: 2, true: 3} | tojson }} {{ 'é你😀' | tojson }} {{ 'é你😀\\u2028' | tojson(ensure_ascii=true) }}"""
T["date"] = """{% set now = strftime_now('%d %b %Y') %}{{ now | length }} {{ strftime_now('%Y-%m-%d') | length }} {{ strftime_now('100%%') }} {{ (strftime_now('%Y') | int) > 2000 }}{% if strftime_now is defined %} yes{% endif %}"""
T["content-list"] = """{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') -%}{{ part.text }}{{ ' ' if not loop.last }}{%- endfor -%}
{%- set images = message.content | selectattr('type', 'equalto', 'image') | list | length -%}
{%- if images %} ({{ images }} image{{ 's' if images != 1 }}){% endif -%}
{%- endif -%}
<|end|>
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt else eos_token -}}"""
T["checks"] = """{%- if messages | selectattr('role', 'equalto', 'system') | list | length > 1 -%}{{ raise_exception('Only one system message, got ' ~ (messages | selectattr('role', 'equalto', 'system') | list | length)) }}{%- endif -%}
{%- if not messages[-1].role == 'user' -%}{{ raise_exception("Last message must be the user's: \\"" + messages[-1].role + '" é') }}{%- endif -%}
{%- if strict is defined and strict %}{{ messages[0].meta.deep.er }}{% endif -%}
{{ messages | map(attribute='content') | join(' / ') }}"""
T["reasoning"] = """{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{% if m.thinking is defined %}[{{ m.thinking }}]{% endif %}{{ m.content if m.content is defined else '(no content)' }}{{ ' calls' if 'tool_calls' in m }}
{% endfor %}{{ tools is none }} {{ tools is defined }} {{ documents is defined }} {{ add_generation_prompt }} {{ bos_token is defined }} {{ pad_token is defined }}"""
T["sandbox-append"] = "{% set xs = [1] %}{% set _ = xs.append(2) %}{{ xs }}"
T["sandbox-update"] = "{% set d = {'a': 1} %}{% set _ = d.update({'b': 2}) %}{{ d }}"
T["sandbox-pop"] = "{% set d = {'a': 1} %}{{ d.pop('a') }}"
T["add-type"] = "{{ 'n: ' + 1 }}"
T["unknown-filter"] = "{{ messages | no_such_filter }}"
T["undefined-call"] = "{{ no_such_function(1) }}"
T["undefined-attribute"] = "{{ missing.attribute }}"
T["division"] = "{{ 1 / 0 }}"

HELLO = [{"role": "user", "content": "Hello"}]
SYSTEM = [{"role": "system", "content": " You are terse. "}, {"role": "user", "content": " Hi there \n"}]
MULTI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello! "}, {"role": "user", "content": "Tell me\nmore."}]
LONG = [{"role": "system", "content": "Be kind."}, *MULTI, {"role": "assistant", "content": "Why not."}, {"role": "user", "content": "Ünïcödé 你好 😀"}]
TWO_SYSTEMS = [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "C"}]
BAD = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
THINK = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<think>\nadd them\n</think>\n\n2"},
         {"role": "user", "content": "and 2+2?"}, {"role": "assistant", "content": "<think>again</think>4"}]
SPELT = [{"role": "user", "content": "say <|im_end|>\n<|im_start|>assistant\n</s> {{ 7*7 }} {% if %}"}]
PARTS = [{"role": "system", "content": [{"type": "text", "text": "See."}]},
         {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is "}, {"type": "text", "text": "this?"}, {"type": "image", "url": "x"}]}]
CALL = {"name": "get_weather", "arguments": {"city": "Zürich", "days": 3, "exact": True, "extra": None, "t": 1.5, "eps": 1e-07, "big": 12345678901}}
CALLS = [{"role": "user", "content": "Weather?"},
         {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "abcdefghi", "function": CALL}]},
         {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": "{\"sky\": \"clear\"}"},
         {"role": "assistant", "content": "Clear."}, {"role": "user", "content": "Thanks"}]
TWO_CALLS = [{"role": "user", "content": "Both?"},
             {"role": "assistant", "content": "", "tool_calls": [{"id": "aaaaaaaaa", "type": "function", "function": CALL},
                                                                 {"id": "bbbbbbbbb", "type": "function", "function": {"name": "now", "arguments": {}}}]},
             {"role": "tool", "tool_call_id": "aaaaaaaaa", "content": "12"}, {"role": "tool", "tool_call_id": "bbbbbbbbb", "content": "noon"}]
STRING_CALL = [{"role": "user", "content": "go"},
               {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}},
                                                    {"type": "function", "function": {"name": "g", "arguments": "{}"}}]},
               {"role": "tool", "content": "r1"}, {"role": "tool", "content": "r2"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather, \"now\" & <later> é",
          "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "a city", "enum": ["Zürich", "東京"]},
                                                           "days": {"type": "integer", "default": 3, "minimum": -1},
                                                           "t": {"type": "number", "default": 1e-07, "maximum": 1.0}, "flag": {"type": "boolean", "default": False},
                                                           "tags": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}},
                         "required": ["city"], "additionalProperties": False, "x": None}, "return": {"type": "string"}}},
         {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
DATA = {"z": 1, "a": [1, 2.5, None, True, {"k": []}], "é": "ü<>&'\"\\/", "f": 1e-07, "g": 1e16, "h": 1.0, "big": 18446744073709551615, "neg": -5, "empty": {}}


def rows():
    def row(name, template, messages=HELLO, tools=None, prompt=True, **variables):
        return {"name": name, "template": template, "messages": messages, "tools": tools, "add_generation_prompt": prompt,
                "variables": {**SPECIAL, **variables}}
    for t in ("chatml", "chatml-default-system", "llama2", "llama2-namespace", "llama3", "gemma", "gemma3", "phi3", "zephyr", "deepseek", "command-r"):
        yield row(f"{t}: one user", t)
        yield row(f"{t}: system", t, SYSTEM, prompt=False)
        yield row(f"{t}: long", t, LONG)
    for t in ("llama2", "gemma", "mistral-tools"):
        yield row(f"{t}: wrong order", t, BAD)
    yield row("llama2: multi", "llama2", MULTI)
    yield row("gemma: multi", "gemma", MULTI)
    yield row("llama2-namespace: two systems", "llama2-namespace", TWO_SYSTEMS)
    yield row("llama2-namespace: no user", "llama2-namespace", [{"role": "system", "content": "x"}])
    yield row("llama2-namespace: other role", "llama2-namespace", [{"role": "robot", "content": "x"}])
    yield row("chatml: spelt tokens and braces in the text", "chatml", SPELT)
    yield row("llama3: date", "llama3", SYSTEM, date_string="01 Feb 2025")
    yield row("llama3: tools in the user message", "llama3", HELLO, TOOLS)
    yield row("llama3: tools in the system message", "llama3", SYSTEM, TOOLS, tools_in_user_message=False)
    yield row("llama3: calls", "llama3", CALLS, TOOLS)
    yield row("llama3: two calls", "llama3", TWO_CALLS, TOOLS)
    yield row("llama3: tools without a user message", "llama3", [{"role": "system", "content": "x"}], TOOLS)
    yield row("llama3: builtin tools", "llama3", HELLO, builtin_tools=["search", "code_interpreter", "math"])
    yield row("llama3: no tools", "llama3", HELLO, [])
    yield row("mistral: plain", "mistral-tools", LONG, prompt=False)
    yield row("mistral: tools", "mistral-tools", SYSTEM, TOOLS)
    yield row("mistral: calls", "mistral-tools", CALLS, TOOLS)
    yield row("mistral: two calls", "mistral-tools", TWO_CALLS)
    yield row("mistral: bad call id", "mistral-tools", STRING_CALL)
    yield row("gemma3: parts", "gemma3", PARTS)
    yield row("gemma3: number as content", "gemma3", [{"role": "user", "content": 7}])
    yield row("phi4-mini: plain", "phi4-mini", MULTI)
    yield row("phi4-mini: tools in the message", "phi4-mini", [{"role": "system", "content": "s", "tools": "[{}]"}, *HELLO], prompt=False)
    yield row("phi4-mini: null tools in the message", "phi4-mini", [{"role": "system", "content": "s", "tools": None}, *HELLO])
    yield row("qwen: plain", "qwen-tools", LONG)
    yield row("qwen: tools", "qwen-tools", HELLO, TOOLS)
    yield row("qwen: calls", "qwen-tools", CALLS, TOOLS)
    yield row("qwen: two calls", "qwen-tools", TWO_CALLS)
    yield row("qwen3: thinking", "qwen3-think", THINK)
    yield row("qwen3: thinking, last is a question", "qwen3-think", THINK[:3])
    yield row("qwen3: no thinking", "qwen3-think", MULTI, enable_thinking=False)
    yield row("qwen3: reasoning_content", "qwen3-think", [HELLO[0], {"role": "assistant", "content": "b", "reasoning_content": "\na\n"}], prompt=False)
    yield row("deepseek: thinking", "deepseek", THINK[:3])
    yield row("deepseek: calls", "deepseek", STRING_CALL)
    yield row("deepseek: no prompt", "deepseek", MULTI, prompt=False)
    yield row("command-r: documents", "command-r", MULTI, documents=[{"title": "One", "text": "first é"}, {"title": "Two", "n": 2.0}])
    yield row("command-r: calls", "command-r", TWO_CALLS[:2])
    yield row("macros", "macros", MULTI, TOOLS)
    yield row("loops", "loops", LONG)
    yield row("loops: no user", "loops", [{"role": "tool", "content": "zz"}])
    yield row("controls", "controls", [*TWO_SYSTEMS, {"role": "user", "content": "stop"}, {"role": "user", "content": "after"}])
    yield row("generation", "generation", LONG)
    yield row("generation: no prompt", "generation", MULTI, prompt=False)
    yield row("whitespace", "whitespace", MULTI)
    yield row("blocks", "blocks", MULTI)
    yield row("tests", "tests", values=[None, True, 0, 1, 1.5, "", "s", [], [1], {}, {"a": 1}])
    yield row("filters", "filters", words=["bee", "a", "cow", "a"],
              users=[{"name": "Ann", "age": 41, "admin": True}, {"name": "Bob", "age": 25, "admin": False, "nick": "b"}])
    yield row("strings", "strings", [{"role": "user", "content": "  The quick brown fox. "}])
    yield row("strings: non-ASCII", "strings", [{"role": "user", "content": "  The qüick 你好 STRASSE ß 😀 o "}])
    yield row("dicts", "dicts")
    yield row("numbers", "numbers", values=[1, 1.0, 2.5, -3, 1e-7, 1e16, 123456789012345.0, 9007199254740993, 18446744073709551615, 0.1, True, None, "s"])
    yield row("tojson", "tojson", data=DATA)
    yield row("tojson: an integer beyond 64 bits", "numbers", values=[1180591620717411303424])
    yield row("date", "date")
    yield row("content-list", "content-list", PARTS)
    yield row("content-list: strings", "content-list", MULTI, prompt=False)
    yield row("checks: fine", "checks", MULTI)
    yield row("checks: two systems", "checks", TWO_SYSTEMS)
    yield row("checks: last is the assistant's", "checks", MULTI[:2])
    yield row("checks: attribute of an undefined value", "checks", MULTI, strict=True)
    yield row("reasoning: null keys are dropped", "reasoning", [{"role": "assistant", "content": None, "tool_calls": None, "thinking": None}, *CALLS[:2]])
    yield row("reasoning: reasoning", "reasoning", [{"role": "assistant", "content": "a", "reasoning": "why"}], prompt=False)
    yield row("reasoning: thinking", "reasoning", [{"role": "assistant", "content": "a", "thinking": "hm"}])
    yield row("reasoning: both", "reasoning", [{"role": "assistant", "content": "a", "thinking": "hm", "reasoning_content": "rc"}])
    yield row("reasoning: tools", "reasoning", HELLO, TOOLS)
    for t in ("sandbox-append", "sandbox-update", "sandbox-pop", "add-type", "unknown-filter", "undefined-call", "undefined-attribute", "division"):
        yield row(t, t)


def expressions(row):
    """Each {{ ... }} of a row alone, behind the row's own {% set %} at its start."""
    text = T[row["template"]]
    start = re.match(r"({% set .*%}\n)?", text).group(0).strip()
    flat = "\n".join(line for line in text[len(start):].split("\n") if "{% for" not in line)
    for one in re.findall(r"{{ .*? }}(?=[^}]|$)", flat, re.S):
        yield {"of": row["name"], "text": start + one}


def render(tokenizer, row, text):
    return tokenizer.apply_chat_template(row["messages"], tools=row["tools"], chat_template=text,
                                         add_generation_prompt=row["add_generation_prompt"], tokenize=False, **row["variables"])


def main():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    out, used = [], set()
    for row in rows():
        used.add(row["template"])
        try:
            row["rendered"] = render(tokenizer, row, T[row["template"]])
        except TemplateError as e:
            if type(e) is TemplateError:
                row["error"] = str(e)
            else:
                row["fails"] = type(e).__name__
                print(row["name"], "fails:", e)
        except Exception as e:
            row["fails"] = type(e).__name__
            print(row["name"], "fails:", e)
        out.append(row)
    assert used == set(T), set(T) - used
    assert len({r["name"] for r in out}) == len(out)
    small = []
    for row in out:
        if row["name"] in SPLIT:
            for e in expressions(row):
                if e not in small:
                    small.append({**e, "rendered": render(tokenizer, row, e["text"])})
    lists = {"templates": T, "rows": out, "expressions": small}
    one_line = lambda v: json.dumps(v, ensure_ascii=False)
    text = "{\n" + ",\n".join(
        [f'"templates": {json.dumps(T, ensure_ascii=False, indent=1)}'] +
        [f'"{key}": [\n' + ",\n".join(map(one_line, lists[key])) + "\n]" for key in ("rows", "expressions")]) + "\n}\n"
    assert json.loads(text) == lists
    (HERE / "templates.json").write_text(text)
    print(len(T), "templates", len(out), "rows", len(small), "expressions", len(text.encode()), "bytes")


if __name__ == "__main__":
    main()
