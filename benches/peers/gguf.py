"""Random llama models in GGUF, for peers: speed does not depend on the values as long as they are finite and none is
denormal."""

import os
import struct

# Type number, values of a block, bytes of a block, positions of its f16 scales.
FORMATS = {
    "Q4_0": (2, 32, 18, [0]),
    "Q8_0": (8, 32, 34, [0]),
    "Q4_K": (12, 256, 144, [0, 2]),
    "Q6_K": (14, 256, 210, [208]),
    "BF16": (30, 1, 2, []),
}


def write(path, sizes, theirs):
    """A llama model of a shape, its quantized blocks random bytes with a small scale; kept if it is there already."""
    if path.exists():
        return
    (layers, hidden, intermediate, heads, kv_heads, vocab), theta = sizes
    kv = hidden // heads * kv_heads
    tensors = [("token_embd.weight", [hidden, vocab], layer_format(theirs))]
    for layer in range(layers):
        # As llama.cpp's Q4_K_M does: the first and the last eighth, and of the rest every third.
        more = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
        finer = "Q6_K" if theirs == "Q4_K_M" and more else layer_format(theirs)
        for name, shape, kind in [
            ("attn_norm", [hidden], None), ("ffn_norm", [hidden], None),
            ("attn_q", [hidden, hidden], layer_format(theirs)), ("attn_k", [hidden, kv], layer_format(theirs)),
            ("attn_v", [hidden, kv], finer), ("attn_output", [hidden, hidden], layer_format(theirs)),
            ("ffn_gate", [hidden, intermediate], layer_format(theirs)),
            ("ffn_up", [hidden, intermediate], layer_format(theirs)), ("ffn_down", [intermediate, hidden], finer),
        ]:
            tensors.append((f"blk.{layer}.{name}.weight", shape, kind))
    tensors.append(("output_norm.weight", [hidden], None))
    head = {"Q4_K_M": "Q6_K", "Q4_0": "Q6_K"}.get(theirs, theirs)
    tensors.append(("output.weight", [hidden, vocab], head))

    header = [
        value("general.architecture", "llama"), value("llama.block_count", layers),
        value("llama.context_length", 8192), value("llama.embedding_length", hidden),
        value("llama.feed_forward_length", intermediate), value("llama.attention.head_count", heads),
        value("llama.attention.head_count_kv", kv_heads), value("llama.rope.dimension_count", hidden // heads),
        value("llama.rope.freq_base", theta), value("llama.attention.layer_norm_rms_epsilon", 1e-5),
        value("llama.vocab_size", vocab), value("tokenizer.ggml.model", "no_vocab"),
    ]
    infos, offset = [], 0
    for name, shape, kind in tensors:
        number, values, size, _ = FORMATS[kind] if kind else (0, 1, 4, [])
        infos.append(text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
                     + struct.pack("<IQ", number, offset))
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        offset += -(-count // values * size // 32) * 32
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(header)) + b"".join(header) + b"".join(infos))
        file.write(bytes(-file.tell() % 32))
        for _, shape, kind in tensors:
            count = shape[0] * (shape[1] if len(shape) > 1 else 1)
            data = struct.pack("<f", 1.0) * count if kind is None else None
            left = len(data) if data else count // FORMATS[kind][1] * FORMATS[kind][2]
            padding = -left % 32
            while left:
                part = data or random_blocks(kind, min(left, 4096 * FORMATS[kind][2]))
                file.write(part)
                left -= len(part)
            file.write(bytes(padding))
    temporary.rename(path)


def layer_format(theirs):
    return "Q4_K" if theirs == "Q4_K_M" else theirs


def random_blocks(kind, n_bytes):
    """Random codes; scales of about a hundredth of the largest code's inverse."""
    _, _, size, scales = FORMATS[kind]
    if kind == "BF16":
        # The upper byte of 0.01 or so, either sign.
        data = bytearray(os.urandom(n_bytes))
        data[1::2] = bytes(0x3C | byte & 0x80 for byte in data[1::2])
        return bytes(data)
    data = bytearray(os.urandom(n_bytes))
    low, high = struct.pack("<e", 0.003 if kind in ("Q4_0", "Q4_K") else 0.0002)
    for place in scales:
        n_blocks = n_bytes // size
        data[place::size], data[place + 1::size] = bytes([low]) * n_blocks, bytes([high]) * n_blocks
    return bytes(data)


def text(string):
    return struct.pack("<Q", len(string.encode())) + string.encode()


def value(key, content):
    if isinstance(content, str):
        return text(key) + struct.pack("<I", 8) + text(content)
    if isinstance(content, float):
        return text(key) + struct.pack("<If", 6, content)
    return text(key) + struct.pack("<II", 4, content)
