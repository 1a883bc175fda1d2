#!/usr/bin/env python3
"""Compares `infer bench` with other runtimes on this machine: the same shape, random weights, runs in turns.

    benches/peers/peers.py                            tinyllama-1.1b beside llama.cpp, 1 and 2 threads
    benches/peers/peers.py --quick                    fewer tokens and rounds: some minutes after the first build
    benches/peers/peers.py --peer candle              another peer (llama.cpp, llama.cpp-avx2, candle, mistralrs)
    benches/peers/peers.py --prefill 4096 --decode 0  a long prompt
    benches/peers/peers.py --prefill 0 --depth 4096   decoding behind 4096 tokens
    benches/peers/peers.py --prepare                  installs and makes the models, and measures nothing

Peers are installed by name into a folder of their own (--work), built for this CPU; llama.cpp takes some ten minutes on
two cores. The models are made once and kept (--models): a GGUF file for each format of a peer, and the packed weights
of `infer bench --shape`. Needs python 3.9 with venv, cargo, a C++ compiler, cmake, and a release build of infer
(`cargo build --release -p infer`).

A round is one run of ours and one of the peer's for every format and number of threads; the table has the medians over
all rounds, with the least and the most, their ratio, and our share of the limit that `infer bench` measures in the same
run. A difference below the spread means nothing. Measure on an idle machine: the threads of llama.cpp wait for each
other, and one that shares its core holds up all, so that a busy machine slows it far more than its share of the cores.
The load is printed with the table.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The modules beside this one leave no compiled copies in the repository.
sys.dont_write_bytecode = True
import gguf
import install

ROOT = Path(__file__).resolve().parents[2]

# Layers, hidden, intermediate, heads, key/value heads, vocabulary; rotary base.
SHAPES = {
    "tinyllama-1.1b": ([22, 2048, 5632, 32, 4, 32000], 10000.0),
    "llama-2-7b": ([32, 4096, 11008, 32, 32, 32000], 10000.0),
    "llama-3-8b": ([32, 4096, 14336, 32, 8, 128256], 500000.0),
}

# Ours beside what a peer has: the format's name and its flags.
OURS = {
    "Q4_0": ("int4", ["--q4"]),
    "Q4_K_M": ("int4", ["--q4"]),
    "Q8_0": ("int8", ["--q8"]),
    "BF16": ("bf16", []),
}


def main():
    args = arguments()
    _, theirs, isa = install.PEERS[args.peer]
    formats = args.formats or theirs
    if unknown := set(formats) - set(theirs):
        sys.exit(f"--formats: {args.peer} has {', '.join(theirs)}, not {', '.join(sorted(unknown))}")
    if not args.infer.exists():
        sys.exit(f"{args.infer} does not exist; cargo build --release -p infer")
    if isa:
        os.environ["INFER_ISA"] = isa
    os.environ["XDG_CACHE_HOME"] = str(args.models)
    args.work.mkdir(parents=True, exist_ok=True)
    args.models.mkdir(parents=True, exist_ok=True)
    try:
        peer = [args.python, str(install.HERE / "time_llama_cpp.py")] if args.python else installed(args.peer, args.work)
    except install.NotInstalled as error:
        sys.exit(f"{args.peer} is not measured, it does not build here: {error}")
    models = {name: model(args, name) for name in formats}
    if not args.prepare:
        compare(args, peer, models)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=SHAPES)
    parser.add_argument("--peer", default="llama.cpp", choices=install.PEERS)
    parser.add_argument("--formats", type=lambda text: text.split(","), help="of the peer, such as Q4_0,Q8_0")
    parser.add_argument("--threads", type=numbers, help="a list [default: 1,2]")
    parser.add_argument("--prefill", type=numbers, help="lengths of prompts; 0 leaves them out [default: 512]")
    parser.add_argument("--decode", type=int, help="tokens; 0 leaves it out [default: 128]")
    parser.add_argument("--depth", type=numbers, default=[0], help="tokens before those that are decoded [default: 0]")
    parser.add_argument("--rounds", type=int, help="[default: 5]")
    parser.add_argument("--quick", action="store_true", help="defaults of 128 and 32 tokens, 2 threads, 3 rounds")
    parser.add_argument("--infer", type=Path, default=ROOT / "target/release/infer")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "infer-peers")
    parser.add_argument("--models", type=Path, help="[default: models in the folder of --work]")
    parser.add_argument("--python", help="a python that has llama-cpp-python, instead of building it")
    parser.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    defaults = {"prefill": [128], "decode": 32, "threads": [2], "rounds": 3} if args.quick else {
        "prefill": [512], "decode": 128, "threads": [1, 2], "rounds": 5}
    for name, default in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    args.models = args.models or args.work / "models"
    args.cases = [("prefill", tokens, 0) for tokens in args.prefill if tokens]
    args.cases += [("decode", args.decode, depth) for depth in args.depth if args.decode]
    if not args.cases:
        parser.error("--prefill and --decode: expected something to measure, found 0 tokens for both")
    return args


def installed(peer, work):
    return install.PEERS[peer][0](work / peer)


def model(args, theirs):
    """The peer's model; makes ours too, whose packed weights are kept."""
    path = args.models / args.shape / f"{theirs}.gguf"
    path.parent.mkdir(exist_ok=True)
    gguf.write(path, SHAPES[args.shape], theirs)
    tokenizer = path.parent / "tokenizer.json"
    if not tokenizer.exists():
        tokenizer.write_bytes((ROOT / "cli/demo/tokenizer.json").read_bytes())
    # Repeats nothing: what is kept already takes no time.
    run_infer(args, theirs, [("decode", 1, 0)], [1])
    return path


def compare(args, peer, models):
    speeds, build, start = {}, "", time.monotonic()
    for round_number in range(args.rounds):
        print(f"round {round_number + 1} of {args.rounds}, {time.monotonic() - start:.0f} s", file=sys.stderr)
        ours = {}
        for theirs, path in models.items():
            name = OURS[theirs][0]
            if name not in ours:
                ours[name] = run_infer(args, theirs, args.cases, args.threads)
            for threads in args.threads:
                found, build = run_peer(peer, path, args.cases, threads)
                for case, peers_speed in zip(args.cases, found):
                    rows = speeds.setdefault((name, theirs, threads, case), ([], [], []))
                    our_speed, share = ours[name][threads, case]
                    for values, value in zip(rows, (our_speed, peers_speed, share)):
                        values.append(value)
    print(f"`benches/peers/peers.py {shlex.join(sys.argv[1:])}`\n")
    print(f"{args.shape}, {args.peer} ({build}); {cpu()}; load {os.getloadavg()[1]:.1f} over the last five minutes; "
          f"tok/s, median of {args.rounds} rounds (least–most)\n")
    print(f"| ours | {args.peer} | threads | what | ours | {args.peer} | ratio | our share of the limit |")
    print("|---|---|---:|---|---:|---:|---:|---:|")
    for (name, theirs, threads, (phase, tokens, depth)), (ours, peers, shares) in speeds.items():
        ratio = statistics.median(ours) / statistics.median(peers)
        what = f"prefill of {tokens}" if phase == "prefill" else f"decode at {depth}"
        print(f"| {name} | {theirs} | {threads} | {what} | {shown(ours)} | {shown(peers)} | {ratio:.2f} "
              f"| {statistics.median(shares):.2f} |")


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


def run_infer(args, theirs, cases, threads):
    """Speeds and shares, by threads and case."""
    at_depth = lambda *depths: [case for case in cases if case[2] in depths]
    others = sorted({case[2] for case in cases} - {0})
    results = {}
    # Depths are for both phases, and prompts are measured at depth 0 alone.
    for group in filter(None, [at_depth(0), at_depth(*others)]):
        joined = lambda values: ",".join(str(value) for value in sorted(set(values))) or "0"
        lengths = {phase: joined(tokens for kind, tokens, _ in group if kind == phase) for phase in ("prefill", "decode")}
        command = [str(args.infer), "bench", "--shape", args.shape, *OURS[theirs][1], "-p", lengths["prefill"],
                   "-n", lengths["decode"], "-d", joined(case[2] for case in group), "-t", joined(threads), "-r", "1",
                   "--json"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for result in json.loads(output):
            case = (result["phase"], result["tokens"], result["depth"])
            results[result["threads"], case] = (result["tok_s"], result["share"])
    return results


def run_peer(peer, path, cases, threads):
    """Speeds of the cases, and what the peer was built for."""
    if peer[-1].endswith(".py"):
        words = [json.dumps({"path": str(path), "threads": threads, "cases": cases})]
    else:
        words = [str(path), *(f"{phase}:{tokens}:{depth}" for phase, tokens, depth in cases)]
    environment = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    output = subprocess.run([*peer, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    result = json.loads(output.splitlines()[-1])
    return result["speeds"], result["build"]


if __name__ == "__main__":
    main()
