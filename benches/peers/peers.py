#!/usr/bin/env python3
"""Compares `infer bench` with other runtimes on this machine: the same shape, random weights, runs in turns.

    benches/peers/peers.py                  tinyllama-1.1b against llama.cpp, int4 and int8, 1 and 2 threads
    benches/peers/peers.py --quick          fewer tokens and repetitions: some minutes after the first build
    benches/peers/peers.py --list           the peers

Peers are installed by name into a folder of their own (--work, by default the temporary folder), built for this CPU.
The first build of llama.cpp takes some ten minutes on two cores. Needs python 3.9 with venv, a C++ compiler, cmake,
and a release build of infer (`cargo build --release -p infer`).

A round is one run of ours and one of the peer's for every format and number of threads; the table has the medians over
all rounds, with the least and the most, and their ratio. A difference below the spread means nothing. Measure on an
idle machine: the threads of llama.cpp wait for each other, and one that shares its core holds up all, so that a busy
machine slows it far more than its share of the cores. The load is printed with the table.
"""

import argparse
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Layers, hidden, intermediate, heads, key/value heads, vocabulary; rotary base.
SHAPES = {
    "tinyllama-1.1b": ([22, 2048, 5632, 32, 4, 32000], 10000.0),
    "llama-2-7b": ([32, 4096, 11008, 32, 32, 32000], 10000.0),
    "llama-3-8b": ([32, 4096, 14336, 32, 8, 128256], 500000.0),
}

# The formats of GGUF: type number, values of a block, bytes of a block, positions of its f16 scales.
GGUF_FORMATS = {
    "Q4_0": (2, 32, 18, [0]),
    "Q8_0": (8, 32, 34, [0]),
    "Q4_K": (12, 256, 144, [0, 2]),
    "Q6_K": (14, 256, 210, [208]),
    "BF16": (30, 1, 2, []),
}

# Ours, and what a peer is asked for: name, format of the layers, format of the head, and file_type in GGUF's metadata.
# Q4_K_M is Q4_K with a Q6_K head and half of the value and down projections in Q6_K.
FORMATS = {
    "llama.cpp": [
        (["--q4"], "int4", "Q4_0"),
        (["--q4"], "int4", "Q4_K_M"),
        (["--q8"], "int8", "Q8_0"),
        ([], "bf16", "BF16"),
    ],
}

PEERS = {
    "llama.cpp": {
        "pip": ["numpy", "llama-cpp-python"],
        "source": ["llama-cpp-python"],
        "cmake": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
        "-DLLAMA_BUILD_TESTS=OFF -DLLAMA_CURL=OFF",
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=SHAPES)
    parser.add_argument("--peer", default="llama.cpp", choices=PEERS)
    parser.add_argument("--formats", help="of the peer, such as Q4_0,Q8_0 [default: all but BF16]")
    parser.add_argument("--threads", help="a list [default: 1,2]")
    parser.add_argument("--prefill", type=int, help="tokens [default: 512]")
    parser.add_argument("--decode", type=int, help="tokens [default: 128]")
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--rounds", type=int, help="[default: 5]")
    parser.add_argument("--quick", action="store_true", help="defaults of 128 and 32 tokens, 2 threads, 3 rounds")
    parser.add_argument("--infer", type=Path, default=ROOT / "target/release/infer")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infer-peers")
    parser.add_argument("--python", type=Path, help="a python that has the peer, instead of building it")
    parser.add_argument("--list", action="store_true", help="the peers and their formats")
    parser.add_argument("--run-peer", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.list:
        for peer, formats in FORMATS.items():
            print(f"{peer}: {', '.join(theirs for _, _, theirs in formats)}")
        return
    if args.run_peer:
        return run_llama_cpp(json.loads(args.run_peer))
    defaults = {"prefill": 128, "decode": 32, "threads": "2", "rounds": 3} if args.quick else {
        "prefill": 512, "decode": 128, "threads": "1,2", "rounds": 5}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if not args.infer.exists():
        sys.exit(f"{args.infer} does not exist; cargo build --release -p infer")
    args.work.mkdir(parents=True, exist_ok=True)
    python = args.python or install(args.peer, args.work / args.peer)
    compare(args, python)


def install(peer, folder):
    """The python of an environment that has the peer, built from source for this CPU."""
    python = folder / "bin/python"
    facts = PEERS[peer]
    if not (folder / "installed").exists():
        print(f"building {peer} in {folder}; this takes a while", file=sys.stderr)
        venv.create(folder, with_pip=True)
        environment = {**os.environ, "CMAKE_ARGS": facts["cmake"], "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
        from_source = [word for name in facts["source"] for word in ("--no-binary", name)]
        command = [python, "-m", "pip", "install", "--quiet", *from_source, *facts["pip"]]
        subprocess.run(command, env=environment, check=True)
        (folder / "installed").touch()
    return python


def compare(args, python):
    wanted = args.formats.split(",") if args.formats else None
    formats = [f for f in FORMATS[args.peer] if (f[2] in wanted if wanted else f[2] != "BF16")]
    if not formats:
        sys.exit(f"--formats: expected some of {', '.join(f[2] for f in FORMATS[args.peer])}")
    files = {theirs: write_gguf(args, theirs) for _, _, theirs in formats}
    threads = [int(n) for n in args.threads.split(",")]
    speeds = {}
    for round_number in range(args.rounds):
        print(f"round {round_number + 1} of {args.rounds}", file=sys.stderr)
        ours = {}
        for flags, name, theirs in formats:
            if name not in ours:
                ours[name] = run_infer(args, flags, threads)
            for n in threads:
                peer = run_peer(args, python, files[theirs], n)
                for phase in ("prefill", "decode"):
                    pair = speeds.setdefault((name, theirs, n, phase), ([], []))
                    pair[0].append(ours[name][n, phase])
                    pair[1].append(peer[phase])
    print(f"{args.shape}, prefill of {args.prefill}, decode of {args.decode} at depth {args.depth}; tok/s, median of "
          f"{args.rounds} rounds (least–most); {cpu()}, "
          f"load {os.getloadavg()[1]:.1f} over the last five minutes\n")
    print(f"| ours | {args.peer} | threads | phase | ours | {args.peer} | ratio |")
    print("|---|---|---:|---|---:|---:|---:|")
    for (name, theirs, n, phase), (ours, peer) in speeds.items():
        ratio = statistics.median(ours) / statistics.median(peer)
        print(f"| {name} | {theirs} | {n} | {phase} | {shown(ours)} | {shown(peer)} | {ratio:.2f} |")


def shown(values):
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def cpu():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    return f"{facts.get('model name', '?')}, family {facts.get('cpu family', '?')}, {os.cpu_count()} cores"


def run_infer(args, flags, threads):
    command = [args.infer, "bench", "--shape", args.shape, *flags, "-p", args.prefill, "-n", args.decode, "-d", args.depth,
               "-t", ",".join(map(str, threads)), "-r", 1, "--json"]
    output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return {(result["threads"], result["phase"]): result["tok_s"] for result in json.loads(output)}


def run_peer(args, python, path, threads):
    job = {"path": str(path), "threads": threads, "prefill": args.prefill, "decode": args.decode, "depth": args.depth}
    command = [str(python), __file__, "--run-peer", json.dumps(job)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run_llama_cpp(job):
    """Inside the peer's environment: times llama.cpp through its C interface, logits of the last token only."""
    import ctypes
    import time

    import llama_cpp as c

    c.llama_backend_init()
    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    model = c.llama_model_load_from_file(job["path"].encode(), c.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {job['path']}")
    params = c.llama_context_default_params()
    params.n_ctx = job["depth"] + max(job["prefill"], job["decode"]) + 8
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = job["threads"]
    context = c.llama_init_from_model(model, params)
    memory = c.llama_get_memory(context)

    def decode(n, per_call):
        for start in range(0, n, per_call):
            count = min(per_call, n - start)
            tokens = (c.llama_token * count)(*((7919 * (start + i + 1)) % 32000 for i in range(count)))
            if c.llama_decode(context, c.llama_batch_get_one(tokens, count)) != 0:
                sys.exit("llama.cpp fails to decode")
            c.llama_get_logits(context)  # waits

    def timed(n, per_call):
        c.llama_memory_clear(memory, True)
        decode(job["depth"], 512)
        start = time.perf_counter()
        decode(n, per_call)
        return n / (time.perf_counter() - start)

    timed(8, 8)  # touches the weights
    print(json.dumps({"prefill": timed(job["prefill"], 512), "decode": timed(job["decode"], 1)}))


def write_gguf(args, theirs):
    """A llama model of the shape whose quantized blocks are random bytes with a small scale: speed does not depend on
    the values as long as they are finite and none is denormal."""
    path = args.work / f"{args.shape}-{theirs}.gguf"
    if path.exists():
        return path
    (layers, hidden, intermediate, heads, kv_heads, vocab), theta = SHAPES[args.shape]
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
        number, values, size, _ = GGUF_FORMATS[kind] if kind else (0, 1, 4, [])
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
            left = len(data) if data else count // GGUF_FORMATS[kind][1] * GGUF_FORMATS[kind][2]
            padding = -left % 32
            while left:
                part = data or random_blocks(kind, min(left, 4096 * GGUF_FORMATS[kind][2]))
                file.write(part)
                left -= len(part)
            file.write(bytes(padding))
    temporary.rename(path)
    return path


def layer_format(theirs):
    return "Q4_K" if theirs == "Q4_K_M" else theirs


def random_blocks(kind, n_bytes):
    """Random codes; scales of about a hundredth of the largest code's inverse."""
    _, _, size, scales = GGUF_FORMATS[kind]
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


if __name__ == "__main__":
    main()
