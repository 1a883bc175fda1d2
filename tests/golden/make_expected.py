#!/usr/bin/env python3
"""Makes what the reference says about the small trained models in ../shared/models.

    python tests/golden/make_expected.py SHARED   # the shared folder: models/, text/

Needs torch, transformers 5.23 and tokenizers. Writes `tests/golden/trained/NAME.json` and
`NAME.safetensors`; README.md says what they hold. Float32 compute of the stored weights, eager attention.
"""
import json
import math
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent
MODELS = ["fairy-llama", "fairy-mixtral", "fairy-phi", "stories260k"]
ROWS = [0, 15, 31, 47]
WINDOWS, WINDOW, NEW = 8, 512, 48
CHATS = ["Tell me a tale about a fox.", "Tell me about a king.", "I would like to hear of a witch.", "Tell me a story about a sister.",
         "Tell me a tale about a wolf.", "Tell me a story about an owl."]
TEXTS = ["Once upon a time there was a", "The old king said to his", "In the middle of the forest", "One day, a little girl"]


@torch.no_grad()
def greedy(model, ids):
    out, margin, step = [], math.inf, model(torch.tensor([ids]), use_cache=True)
    for _ in range(NEW):
        top = step.logits[0, -1].topk(2)
        margin = min(margin, (top.values[0] - top.values[1]).item())
        out.append(int(top.indices[0]))
        step = model(torch.tensor([out[-1:]]), past_key_values=step.past_key_values, use_cache=True)
    return out, margin


@torch.no_grad()
def likelihood(model, ids, begin):
    """Windows of 512 that do not overlap: the begin token, then the next 511 tokens; each but the first is scored."""
    sums, halves, first = [], [], []
    for w in range(WINDOWS):
        x = torch.tensor([[begin] + ids[w * (WINDOW - 1):(w + 1) * (WINDOW - 1)]])
        logp = model(x, use_cache=False).logits[0, :-1].double().log_softmax(-1)
        nll = -logp.gather(1, x[0, 1:, None])[:, 0]
        sums.append(nll.sum().item())
        halves.append(nll[WINDOW // 2 - 1:].sum().item())
        first = first or [round(v, 6) for v in nll[:8].tolist()]
    n, m = WINDOWS * (WINDOW - 1), WINDOWS * (WINDOW // 2)
    return {"windows": WINDOWS, "window": WINDOW, "tokens": n, "nll_sum": round(sum(sums), 6), "mean_nll": round(sum(sums) / n, 8),
            "perplexity": round(math.exp(sum(sums) / n), 6), "nll_sums": [round(v, 6) for v in sums], "first_nll": first,
            "second_half": {"tokens": m, "nll_sum": round(sum(halves), 6), "perplexity": round(math.exp(sum(halves) / m), 6)}}


def prompt(model, tokenizer, stop, candidates):
    """The first candidate whose greedy text has a clear margin at each step."""
    for fields, ids in candidates:
        out, margin = greedy(model, ids)
        if margin > 0.004:
            end = out.index(stop) if stop in out else len(out)
            return {**fields, "prompt_ids": ids, "greedy_ids": out, "stopped_after": end,
                    "text": tokenizer.decode(out[:end], skip_special_tokens=True),
                    "whole_text": tokenizer.decode(ids + out[:end], skip_special_tokens=True), "min_margin": round(margin, 5)}
    raise SystemExit("no prompt has a clear margin")


def main(shared):
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    (HERE / "trained").mkdir(exist_ok=True)
    text = (shared / "text" / "fairy-test.txt").read_bytes().decode()
    for name in MODELS:
        folder = shared / "models" / name
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        config = json.loads((folder / "config.json").read_text())
        extra = json.loads((folder / "tokenizer_config.json").read_text())
        begin, stop = config["bos_token_id"], config["eos_token_id"]
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        ids = tokenizer.encode(text, add_special_tokens=False).ids

        tokens = [begin] + ids[1000:1000 + 47]
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
        save_file({"tokens": torch.tensor(tokens), "rows": torch.tensor(ROWS), "logits": logits[ROWS].contiguous()},
                  HERE / "trained" / f"{name}.safetensors")
        result = {"text": prompt(model, tokenizer, stop, [({"prompt": t}, tokenizer.encode(t).ids) for t in TEXTS])}
        if "chat_template" in extra:
            chat = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=extra["bos_token"], eos_token=extra["eos_token"])
            chat.chat_template = extra["chat_template"]
            candidates = []
            for line in CHATS:
                messages = [{"role": "user", "content": line}]
                rendered = chat.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
                candidates.append(({"messages": messages, "rendered": rendered}, tokenizer.encode(rendered, add_special_tokens=False).ids))
            result["chat"] = prompt(model, tokenizer, stop, candidates)
        result["likelihood"] = {"file": "text/fairy-test.txt", "file_tokens": len(ids), **likelihood(model, ids, begin)}
        (HERE / "trained" / f"{name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(name, result["likelihood"]["perplexity"], result["text"]["whole_text"], "|", result.get("chat", {}).get("text"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
