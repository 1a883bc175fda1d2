#!/usr/bin/env python3
"""Makes the golden models: tiny random models of every family with the logits the reference gives.

    python tests/golden/make_models.py             # all of them, and the table in README.md
    python tests/golden/make_models.py llama phi3  # only the cases whose name starts so

Needs torch, transformers 5.23 and safetensors (the CPU builds do). Writes `tests/golden/models/NAME/`:
an ordinary Hugging Face folder without a tokenizer, and beside it `expected.safetensors` with

    tokens       [48] i64          the prompt
    rows         [r] i64           the prompt positions whose logits are kept (absent: all)
    logits       [r, vocab] f32    logits after those positions, the prompt in one pass
    greedy       [32] i64          the greedy continuation
    steps        [k] i64           the decode steps whose logits are kept
    step_logits  [k, vocab] f32    step s = the logits that choose greedy[s]

Everything is computed in float32 with eager attention from the weights as they are stored. The
config is written as given here and read back by the library, so its defaults are the reference's.
A seed is taken only if the logits spread, the greedy choice has a clear margin at each step and
float64 agrees with float32.
"""
import json
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Optional

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.phimoe import modeling_phimoe

HERE = Path(__file__).resolve().parent
PROMPT, DECODE = 48, 32
ROWS = [0, 1, 2, 5, 7, 8, 12, 15, 16, 23, 24, 31, 32, 40, 46, 47]
STEPS = [0, 1, 2, 15, 16, 17, 31]
FLOAT = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def phimoe_rotary(self, x, position_ids=None):
    """The rule of the Phi-3.5-MoE model itself; transformers 5.23 never switches to `long_factor`."""
    rope, length = self.config.rope_parameters, int(position_ids.max()) + 1
    inv_freq, scale = self.rope_init_fn(self.config, seq_len=length)
    if rope["rope_type"] != "default":
        scale = rope["long_mscale" if length > rope["original_max_position_embeddings"] else "short_mscale"]
    angles = position_ids[..., None].float() * inv_freq
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scale).to(x.dtype), (angles.sin() * scale).to(x.dtype)


modeling_phimoe.PhimoeRotaryEmbedding.forward = torch.no_grad()(phimoe_rotary)


@dataclass
class Case:
    name: str
    protects: str
    config: dict
    dtype: str = "bf16"                 # of the stored weights; "mixed" takes turns
    respell: Optional[Callable] = None  # the config as committed, where transformers 5.23 cannot read that spelling
    edit: Optional[Callable] = None     # last change to the tensors before they are written
    fused: bool = False                 # keep the library's own (fused) names of experts
    shards: int = 1
    rows: Optional[list] = field(default_factory=lambda: ROWS)
    stateful: bool = False              # cached decode differs from one pass, and the cached one counts
    prompt: int = PROMPT
    decode: int = DECODE
    steps: list = field(default_factory=lambda: STEPS)
    router: float = 2.0                 # spread of the router's logits
    spread: float = 3.0                 # wanted spread of the logits
    seed: int = 0


def draw(model, case, seed):
    """Draws every parameter wide: no norm is 1, no bias 0, scores and logits spread."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda p, std, mean=0.0: p.copy_(torch.randn(p.shape, generator=g) * std + mean)
    cfg = model.config
    gemma, tied = "gemma" in cfg.model_type, getattr(cfg, "tie_word_embeddings", False)
    conv = {n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            module, _, leaf = name.rpartition(".")
            if "norm" in name or ".ln_" in name:
                if leaf == "bias":
                    normal(p, 0.2)
                else:
                    # gemma adds 1; its embeddings are drawn small (they are scaled by sqrt(hidden)), so the last norm is large
                    normal(p, 0.25, case.spread - 1.0 if gemma and name == "model.norm.weight" else
                           0.8 if gemma and "post_" in name else 0.0 if gemma else 1.0)
            elif leaf == "bias" or (p.dim() == 1):
                normal(p, 0.3)
            elif "embed_positions" in name or "wpe" in name:
                normal(p, 0.5)
            elif "embed" in name or "wte" in name:
                normal(p, (1.0 if gemma else case.spread) / math.sqrt(p.shape[1]) if tied else 1.0)
            elif "lm_head" in name:
                normal(p, case.spread / math.sqrt(p.shape[1]))
            else:
                fan_in = p.shape[0] if module in conv else p.shape[-1]
                gain = 1.2
                if module.endswith(("mlp.gate", "router", "block_sparse_moe.gate")):
                    gain = case.router
                elif module.endswith(("q_proj", "k_proj", "qkv_proj", "query_key_value", "c_attn")):
                    gain = 1.5
                elif tied and module.endswith(("o_proj", "down_proj", "c_proj", "fc2", "dense", "out_proj")):
                    gain = 2.5  # else a tied model repeats its input
                normal(p, gain / math.sqrt(fan_in))


def write(folder, case, seed):
    """Writes config.json and the weights of one random model."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*"):
        old.unlink()
    (folder / "config.json").write_text(json.dumps(case.config, indent=1) + "\n")
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    draw(model, case, seed)
    model.save_pretrained(folder, save_original_format=not case.fused)
    (folder / "config.json").write_text(json.dumps(case.config, indent=1) + "\n")
    for extra in folder.glob("generation_config.json"):
        extra.unlink()
    tensors = load_file(folder / "model.safetensors")
    if case.edit:
        g = torch.Generator().manual_seed(seed + 1000)
        tensors = case.edit(dict(tensors), config, g)
    names = sorted(tensors)
    for i, name in enumerate(names):
        kind = ["bf16", "f16", "f32"][i % 3] if case.dtype == "mixed" else case.dtype
        if tensors[name].is_floating_point():
            tensors[name] = tensors[name].to(FLOAT[kind])
    if case.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        (folder / "model.safetensors").unlink()
        where = {}
        for s in range(case.shards):
            file = f"model-{s + 1:05}-of-{case.shards:05}.safetensors"
            part = names[s::case.shards]
            save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt"})
            where.update({n: file for n in part})
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def load(folder, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["mismatched_keys"], info
    # the expert loop in plain form: the library's default kernel for experts needs no trust then
    if hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"
    return model.to(dtype).eval()


@torch.no_grad()
def one_pass(folder, ids, dtype=torch.float32, model=None):
    model = model or load(folder, dtype)
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def cached(folder, ids, n):
    """The reference's own decoding: one token at a time over its cache."""
    model, out, rows = load(folder), [], []
    step = model(torch.tensor([ids]), use_cache=True)
    for _ in range(n):
        rows.append(step.logits[0, -1])
        out.append(int(rows[-1].argmax()))
        step = model(torch.tensor([out[-1:]]), past_key_values=step.past_key_values, use_cache=True)
    return out, torch.stack(rows)


@torch.no_grad()
def generated(folder, ids, n):
    model = load(folder)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                         do_sample=False, max_new_tokens=n)
    return out[0, len(ids):].tolist()


def attempt(folder, case, seed):
    """Writes the model of one seed; says why it is not good, or gives its expectation."""
    write(folder, case, seed)
    vocab = case.config["vocab_size"]
    ids = torch.randint(0, vocab, (case.prompt,), generator=torch.Generator().manual_seed(seed + 7)).tolist()
    logits = one_pass(folder, ids)
    std = logits.std(dim=-1).mean().item()
    if not case.spread * 0.6 < std < case.spread * 1.5:
        return f"spread {std:.2f}", None
    noise = (one_pass(folder, ids, torch.float64) - logits).abs().max().item()
    if noise > 2e-5:
        return f"noise {noise:.1e}", None
    if case.stateful:
        greedy, rows = cached(folder, ids, case.decode)
    else:
        model, greedy, rows = load(folder), [], []
        for _ in range(case.decode):
            rows.append(one_pass(folder, ids + greedy, model=model)[-1])
            greedy.append(int(rows[-1].argmax()))
        rows = torch.stack(rows)
    top = rows.topk(2, dim=-1).values
    margin = (top[:, 0] - top[:, 1]).min().item()
    if margin < 0.02:
        return f"margin {margin:.4f}", None
    if len(set(greedy)) < min(10, case.decode // 3):
        return f"only {len(set(greedy))} different tokens", None
    got = generated(folder, ids, case.decode)
    assert got == greedy, (case.name, "generate() differs", got, greedy)
    steps = [s for s in case.steps if s < case.decode]
    expected = {"tokens": torch.tensor(ids), "greedy": torch.tensor(greedy), "steps": torch.tensor(steps),
                "step_logits": rows[steps].contiguous()}
    if case.rows is None:
        expected["logits"] = logits.contiguous()
    else:
        expected["rows"] = torch.tensor(case.rows)
        expected["logits"] = logits[case.rows].contiguous()
    return f"spread {std:.2f} noise {noise:.0e} margin {margin:.3f} distinct {len(set(greedy))}", expected


def make(case, root):
    folder = root / case.name
    for seed in range(case.seed, case.seed + 120):
        verdict, expected = attempt(folder, case, seed)
        if expected is not None:
            save_file(expected, folder / "expected.safetensors")
            if case.respell:
                (folder / "config.json").write_text(json.dumps(case.respell(case.config), indent=1) + "\n")
            size = sum(f.stat().st_size for f in folder.glob("*"))
            print(f"{case.name:34} seed {seed:2} {verdict} {size // 1024} KB", flush=True)
            return
        print(f"{case.name:34} seed {seed:2} {verdict}", flush=True)
    raise SystemExit(f"{case.name}: no seed is good")


# ---------------------------------------------------------------- changes to the tensors

def with_extras(tensors, config, g):
    """What old checkpoints carry and nobody needs."""
    half = (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) // 2
    for i in range(config.num_hidden_layers):
        tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.rand(half, generator=g)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    return tensors


def with_own_head(tensors, config, g):
    """A head that differs from the tied embeddings: the library then uses it."""
    shape = tensors["model.embed_tokens.weight"].shape
    return {**tensors, "lm_head.weight": torch.randn(shape, generator=g) * 3.0 / math.sqrt(shape[1])}


def without_prefix(prefix):
    return lambda tensors, config, g: {n.removeprefix(prefix): t for n, t in tensors.items()}


def with_masks(prefix=""):
    """GPT-2's causal masks, stored as if they were weights."""
    def edit(tensors, config, g):
        tensors = {n.removeprefix("transformer.") if not prefix else n: t for n, t in tensors.items()}
        n = config.n_positions
        for i in range(config.n_layer):
            tensors[f"{prefix}h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n)
            tensors[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        return tensors
    return edit


# ---------------------------------------------------------------- the cases

def family(arch, model_type, **common):
    def config(**changes):
        merged = {"architectures": [arch], "model_type": model_type, **common, **changes}
        return {k: v for k, v in merged.items() if v is not ABSENT}
    return config


ABSENT = object()
SIZES = dict(vocab_size=101, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=128)
llama = family("LlamaForCausalLM", "llama", **SIZES, rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
               rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, dtype="bfloat16")
mistral = family("MistralForCausalLM", "mistral", **SIZES, rms_norm_eps=1e-5, hidden_act="silu", sliding_window=None,
                 tie_word_embeddings=False, rope_theta=10000.0, torch_dtype="bfloat16")
mixtral = family("MixtralForCausalLM", "mixtral", **{**SIZES, "intermediate_size": 28}, rms_norm_eps=1e-5, hidden_act="silu",
                 sliding_window=None, tie_word_embeddings=False, rope_theta=1000000.0, num_local_experts=4,
                 num_experts_per_tok=2, torch_dtype="bfloat16")
phi = family("PhiForCausalLM", "phi", **{**SIZES, "num_key_value_heads": 4}, layer_norm_eps=1e-5, hidden_act="gelu_new",
             tie_word_embeddings=False, partial_rotary_factor=0.5, qk_layernorm=False, rope_theta=10000.0, torch_dtype="bfloat16")
phi3 = family("Phi3ForCausalLM", "phi3", **SIZES, rms_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
              sliding_window=None, original_max_position_embeddings=128, rope_theta=10000.0, rope_scaling=None, pad_token_id=None,
              torch_dtype="bfloat16")
phimoe = family("PhiMoEForCausalLM", "phimoe", **{**SIZES, "intermediate_size": 28}, rms_norm_eps=1e-5, hidden_act="silu",
                tie_word_embeddings=False, sliding_window=None, attention_bias=True, lm_head_bias=True, num_local_experts=4,
                num_experts_per_tok=2, router_jitter_noise=0.4, input_jitter_noise=0.01, rope_theta=10000.0, torch_dtype="bfloat16")


def longrope(half, original, name="longrope", **more):
    short = [round(1.0 + 0.07 * i, 4) for i in range(half)]
    long = [round(1.3 + 0.9 * i, 4) for i in range(half)]
    return {"type": name, "short_factor": short, "long_factor": long, **more}


def core():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
    yield Case("llama-gqa", "plain Llama: grouped heads, untied head; logits of every row", llama(), dtype="f32", rows=None)
    yield Case("llama-mha-bias-tied", "one KV head a head, tied head, attention_bias and mlp_bias",
               llama(num_key_value_heads=4, tie_word_embeddings=True, attention_bias=True, mlp_bias=True))
    yield Case("llama-mqa-headdim", "one KV head, head_dim 16 that is not hidden/heads, f16 weights",
               llama(num_key_value_heads=1, head_dim=16, dtype="float16"), dtype="f16")
    yield Case("llama-odd", "sizes that are no multiple of anything: hidden 36, heads 6 of 6, intermediate 50, vocab 101, 3 layers",
               llama(hidden_size=36, num_attention_heads=6, num_key_value_heads=3, intermediate_size=50, num_hidden_layers=3))
    yield Case("llama-old-config", "the older writing: rope_theta (not 10000), rope_scaling null, torch_dtype, head_dim null",
               llama(rope_parameters=ABSENT, dtype=ABSENT, rope_theta=500.0, rope_scaling=None, torch_dtype="bfloat16",
                     head_dim=None, rms_norm_eps=1e-3))
    yield Case("llama-defaults", "absent: num_key_value_heads, head_dim, rms_norm_eps (1e-6), rope, hidden_act, tie, dtype, max_position (2048)",
               {k: v for k, v in llama().items() if k in ("architectures", "model_type", "vocab_size", "hidden_size",
                                                           "intermediate_size", "num_hidden_layers", "num_attention_heads")})
    yield Case("llama-sharded", "three shards and an index", llama(), shards=3)
    yield Case("llama-mixed", "bf16, f16 and f32 tensors in one file", llama(attention_bias=True), dtype="mixed")
    yield Case("llama-extras", "ignores rotary_emb.inv_freq and an lm_head beside tied embeddings",
               llama(tie_word_embeddings=True), edit=with_extras)
    yield Case("llama-tied-own-head", "tie_word_embeddings true but a different lm_head stored: the stored head counts",
               llama(tie_word_embeddings=True), edit=with_own_head)
    yield Case("llama-no-prefix", "names without `model.`, tied head, intermediate 20", llama(tie_word_embeddings=True, intermediate_size=20),
               edit=without_prefix("model."))
    yield Case("llama-rope-linear", "linear rope scaling, older writing with `type`",
               llama(rope_parameters=ABSENT, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 2.5}))
    yield Case("llama-rope-dynamic", "dynamic NTK within the original length: no effect",
               llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}))
    yield Case("llama-rope-dynamic-beyond", "dynamic NTK, prompt 48 beyond 32; decode keeps the rotation of old keys",
               llama(rope_parameters=ABSENT, max_position_embeddings=32, rope_theta=10000.0,
                     rope_scaling={"type": "dynamic", "factor": 2.0}), stateful=True)
    yield Case("llama-rope-dynamic-crossing", "dynamic NTK, prompt 48 within 56, decode crosses it; old keys keep their rotation",
               llama(max_position_embeddings=56, rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}),
               stateful=True)
    yield Case("llama-rope-yarn", "yarn with its defaults (attention factor 0.1 ln f + 1, beta 32 and 1)", llama(rope_parameters=yarn, head_dim=16))
    yield Case("llama-rope-yarn-options", "yarn with attention_factor, beta_fast, beta_slow; the original length defaults to max_position",
               llama(rope_parameters=ABSENT, head_dim=16, rope_theta=2000.0, rope_scaling={
                   "rope_type": "yarn", "factor": 3.0, "attention_factor": 0.8, "beta_fast": 6, "beta_slow": 0.5}))
    yield Case("llama-rope-yarn-mscale", "yarn with mscale, mscale_all_dim and truncate false",
               llama(head_dim=16, rope_parameters={**yarn, "mscale": 1.4, "mscale_all_dim": 0.7, "truncate": False, "beta_fast": 8}))
    yield Case("llama-rope-llama3", "llama3 scaling: all three bands of wavelengths",
               llama(head_dim=16, rope_parameters=ABSENT, rope_theta=10000.0, rope_scaling={
                   "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                   "original_max_position_embeddings": 64}))
    yield Case("mistral-window", "sliding window 12 below the prompt, grouped heads", mistral(sliding_window=12))
    yield Case("mistral-headdim", "head_dim 12 with hidden/heads 8, no window (null), newer writing",
               mistral(head_dim=12, rope_theta=ABSENT, rope_parameters={"rope_type": "default", "rope_theta": 1e6}))
    yield Case("mixtral-top2", "original names block_sparse_moe.experts.N.w1/w2/w3, top-2 of 4", mixtral())
    yield Case("mixtral-top1", "top-1: the weight is exactly 1", mixtral(num_experts_per_tok=1))
    yield Case("mixtral-top3", "top-3 of 5, absent rope_theta (1000000 in this family), f16",
               mixtral(num_experts_per_tok=3, num_local_experts=5, intermediate_size=24, rope_theta=ABSENT), dtype="f16")
    yield Case("mixtral-fused", "fused names mlp.experts.gate_up_proj / down_proj and mlp.gate", mixtral(), fused=True)
    yield Case("mixtral-window", "sliding window 9, head_dim 16, tied head, one layer of 8 experts",
               mixtral(sliding_window=9, head_dim=16, tie_word_embeddings=True, num_hidden_layers=1, num_local_experts=8, intermediate_size=24))
    yield Case("phi", "Phi-1/1.5/2: parallel block, partial rotary 0.5, biases", phi())
    yield Case("phi-qk-layernorm", "LayerNorm on q and k per head before the rotation", phi(qk_layernorm=True))
    yield Case("phi-gqa", "Phi with grouped heads, partial rotary by default (0.5), newer writing",
               phi(num_key_value_heads=2, rope_theta=ABSENT, torch_dtype=ABSENT, partial_rotary_factor=ABSENT, head_dim=ABSENT), dtype="f16")
    yield Case("phi-partial", "partial rotary 0.4 as in phi-2 (head_dim 20: 8 rotated)",
               phi(hidden_size=40, num_attention_heads=2, num_key_value_heads=2, partial_rotary_factor=0.4))
    yield Case("phi3", "fused qkv_proj and gate_up_proj", phi3())
    yield Case("phi3-window", "sliding window 10, grouped heads with one KV head", phi3(sliding_window=10, num_key_value_heads=1))
    yield Case("phi3-longrope-short", "longrope, everything below the original length: short factors, attention factor all the same",
               phi3(max_position_embeddings=1024, original_max_position_embeddings=96, rope_scaling=longrope(4, 96)))
    yield Case("phi3-longrope-long", "longrope, prompt beyond the original length: long factors for all positions",
               phi3(max_position_embeddings=1024, original_max_position_embeddings=32, rope_scaling=longrope(4, 32)))
    yield Case("phi3-longrope-crossing", "longrope, decode crosses the original length: the cache is rebuilt with the long factors",
               phi3(max_position_embeddings=1024, original_max_position_embeddings=60, rope_scaling=longrope(4, 60)))
    yield Case("phi3-longrope-su", "longrope under its old name `su`, with a sliding window",
               phi3(max_position_embeddings=512, original_max_position_embeddings=40, rope_scaling=longrope(4, 40), sliding_window=30),
               respell=lambda c: {**c, "rope_scaling": longrope(4, 40, "su")})
    yield Case("phi3-longrope-partial", "Phi-4-mini: partial rotary 0.75, tied head, longrope crossing",
               phi3(hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=ABSENT, tie_word_embeddings=True,
                    partial_rotary_factor=0.75, max_position_embeddings=1024, original_max_position_embeddings=56,
                    rope_scaling=longrope(6, 56)))


qwen2 = family("Qwen2ForCausalLM", "qwen2", **SIZES, rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
               rope_theta=1000000.0, use_sliding_window=False, sliding_window=8, max_window_layers=1, torch_dtype="bfloat16")
qwen3 = family("Qwen3ForCausalLM", "qwen3", **SIZES, head_dim=12, rms_norm_eps=1e-6, hidden_act="silu", tie_word_embeddings=False,
               rope_theta=1000000.0, rope_scaling=None, attention_bias=False, use_sliding_window=False, sliding_window=None,
               max_window_layers=2, torch_dtype="bfloat16")
GEMMA = dict(pad_token_id=0, rms_norm_eps=1e-6, torch_dtype="bfloat16")
gemma = family("GemmaForCausalLM", "gemma", **SIZES, **GEMMA, head_dim=12, hidden_act="gelu", rope_theta=10000.0)
gemma2 = family("Gemma2ForCausalLM", "gemma2", **SIZES, **GEMMA, head_dim=12, hidden_activation="gelu_pytorch_tanh",
                query_pre_attn_scalar=20, sliding_window=10, attn_logit_softcapping=6.0, final_logit_softcapping=10.0,
                rope_theta=10000.0)
gemma3 = family("Gemma3ForCausalLM", "gemma3_text", **{**SIZES, "num_hidden_layers": 3}, **GEMMA, head_dim=8,
                hidden_activation="gelu_pytorch_tanh", query_pre_attn_scalar=10, sliding_window=10,
                rope_theta=1000000.0, rope_local_base_freq=10000.0)
stablelm = family("StableLmForCausalLM", "stablelm", **SIZES, layer_norm_eps=1e-5, hidden_act="silu", tie_word_embeddings=False,
                  use_qkv_bias=False, qk_layernorm=False, use_parallel_residual=False, partial_rotary_factor=0.25,
                  rope_theta=10000.0, torch_dtype="bfloat16")
gpt2 = family("GPT2LMHeadModel", "gpt2", vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=96,
              activation_function="gelu_new", layer_norm_epsilon=1e-5)
opt = family("OPTForCausalLM", "opt", vocab_size=101, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
             max_position_embeddings=96, word_embed_proj_dim=32, activation_function="relu", do_layer_norm_before=True,
             pad_token_id=1, bos_token_id=2, eos_token_id=2, torch_dtype="float16")
persimmon = family("PersimmonForCausalLM", "persimmon", vocab_size=101, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                   num_attention_heads=2, max_position_embeddings=128, layer_norm_eps=1e-5, hidden_act="relu2",
                   tie_word_embeddings=False, qk_layernorm=True, partial_rotary_factor=0.5, rope_theta=25000.0, torch_dtype="bfloat16")


def more():
    mscale = dict(short_mscale=1.1, long_mscale=1.3)
    yield Case("phimoe", "Phi-3.5-MoE: sparsemixer with wide jitter (several experts in one softmax), LayerNorm and biases", phimoe())
    yield Case("phimoe-plain", "sparsemixer with the default jitter 0.01, no biases, absent rope_theta (1000000), 8 experts",
               phimoe(router_jitter_noise=ABSENT, rope_theta=ABSENT, attention_bias=ABSENT, lm_head_bias=ABSENT,
                      num_local_experts=8, intermediate_size=20), router=0.3)
    yield Case("phimoe-longrope-short", "below the original length: short factors times short_mscale",
               phimoe(max_position_embeddings=1024, rope_scaling=longrope(4, 96, original_max_position_embeddings=96, **mscale)))
    yield Case("phimoe-longrope-long", "beyond the original length: long factors times long_mscale (the model's own rule), window 30",
               phimoe(max_position_embeddings=1024, sliding_window=30,
                      rope_scaling=longrope(4, 40, original_max_position_embeddings=40, **mscale)))
    yield Case("phimoe-longrope-crossing", "decode crosses the original length",
               phimoe(max_position_embeddings=1024, num_hidden_layers=1,
                      rope_scaling=longrope(4, 64, original_max_position_embeddings=64, **mscale)))
    yield Case("qwen2", "biases on q, k and v only; sliding_window present but not used", qwen2())
    yield Case("qwen2-window", "use_sliding_window from layer max_window_layers (1 of 3) on, tied head",
               qwen2(use_sliding_window=True, num_hidden_layers=3, intermediate_size=40, tie_word_embeddings=True))
    yield Case("qwen3", "RMSNorm on q and k per head, head_dim 12", qwen3())
    yield Case("qwen3-bias-tied", "attention_bias (q, k, v and o), tied head, window by layer_types",
               qwen3(attention_bias=True, tie_word_embeddings=True, use_sliding_window=True, sliding_window=9,
                     layer_types=["sliding_attention", "full_attention"], head_dim=16, num_attention_heads=2, num_key_value_heads=1))
    yield Case("gemma", "embeddings times sqrt(hidden), norm weight 1 + w, tied without saying so, `gelu` means tanh, head_dim 12", gemma())
    yield Case("gemma2", "four norms a layer, both soft caps, query_pre_attn_scalar, window on even layers",
               gemma2(num_hidden_layers=3, intermediate_size=40))
    yield Case("gemma3", "q and k norms, every third layer global (sliding_window_pattern), rope_local_base_freq, linear scaling on global layers only",
               gemma3(sliding_window_pattern=3, rope_scaling={"rope_type": "linear", "factor": 4.0}))
    yield Case("gemma3-layer-types", "layer_types and rope_parameters per layer type (newer writing)",
               gemma3(layer_types=["full_attention", "sliding_attention", "full_attention"], rope_theta=ABSENT, rope_local_base_freq=ABSENT,
                      rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 20000.0},
                                       "sliding_attention": {"rope_type": "default", "rope_theta": 500.0}}, head_dim=12))
    yield Case("stablelm", "LayerNorm with bias, gated MLP, partial rotary 0.25", stablelm())
    yield Case("stablelm-parallel", "use_parallel_residual: one norm a layer; use_qkv_bias; partial rotary by default (0.25)",
               stablelm(use_parallel_residual=True, use_qkv_bias=True, partial_rotary_factor=ABSENT))
    yield Case("stablelm-qk-layernorm", "a LayerNorm without bias for each head of q and k, partial rotary 0.5",
               stablelm(qk_layernorm=True, partial_rotary_factor=0.5, use_parallel_residual=True))
    yield Case("gpt2", "weights stored [in, out], names without prefix, stored masks (attn.bias, attn.masked_bias)",
               gpt2(n_positions=80), edit=with_masks())
    yield Case("gpt2-prefix", "names with `transformer.`, scale_attn_by_inverse_layer_idx, n_inner, old extra fields",
               gpt2(scale_attn_by_inverse_layer_idx=True, n_inner=56, n_ctx=96, resid_pdrop=0.1, summary_type="cls_index"))
    yield Case("opt", "learned positions from 2, ReLU, pre-norm with a final norm, f16", opt(), dtype="f16")
    yield Case("opt-350m", "post-norm, project_in and project_out, no final norm, names without `model.`",
               opt(do_layer_norm_before=False, word_embed_proj_dim=24), edit=without_prefix("model."))
    yield Case("opt-galactica", "gelu, enable_bias false, layer_norm_elementwise_affine false",
               opt(activation_function="gelu", enable_bias=False, layer_norm_elementwise_affine=False))
    yield Case("persimmon", "fused qkv [heads, 3, head_dim], LayerNorm on q and k, relu2, partial rotary 0.5", persimmon())


CASES = [core, more]


def table(cases):
    return "\n".join(["| name | what it protects |", "|---|---|", *(f"| {c.name} | {c.protects} |" for c in cases)])


def main():
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    cases = [c for group in CASES for c in group()]
    assert len({c.name for c in cases}) == len(cases)
    wanted = sys.argv[1:]
    for case in cases:
        if not wanted or any(case.name.startswith(w) for w in wanted):
            make(case, HERE / "models")
    readme = HERE / "README.md"
    if readme.exists():
        head, rest = readme.read_text().split("<!-- models -->\n", 1)
        tail = rest.split("<!-- end of models -->", 1)[1]
        readme.write_text(f"{head}<!-- models -->\n{table(cases)}\n<!-- end of models -->{tail}")


if __name__ == "__main__":
    main()
