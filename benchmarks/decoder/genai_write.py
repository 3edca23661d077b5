"""Let onnxruntime-genai load a folder and write behind prompts, in a process of its own.

The request has `folder`, `prompts` (lists of token numbers) and `count`, the number of tokens to write behind each. The most
likely token is taken each time.
"""

from typing import Any

import onnxruntime_genai as genai


def work(request: dict[str, Any]) -> dict[str, Any]:
    """Give what was written behind each prompt, as token numbers, and the first text of it."""
    model = genai.Model(request["folder"])
    written = [write(model, prompt, request["count"]) for prompt in request["prompts"]]
    tokenizer = genai.Tokenizer(model)
    return {
        "version": genai.__version__,
        "written": written,
        "first_prompt": tokenizer.decode(request["prompts"][0]),
        "first_text": tokenizer.decode(written[0]),
    }


def write(model: Any, prompt: list[int], count: int) -> list[int]:
    """The tokens that follow a prompt; fewer than `count` where the text ends before."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=len(prompt) + count)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(prompt)
    while not generator.is_done():
        generator.generate_next_token()
    return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]
