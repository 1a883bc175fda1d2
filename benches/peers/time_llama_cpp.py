"""Runs inside llama.cpp's environment: times it through its C interface, with its own defaults and the logits of the
last token only. The job is JSON on the command line; on stdout comes a JSON object with a speed for each case."""

import ctypes
import json
import sys
import time

import llama_cpp as c

# Tokens of a batch, llama.cpp's default for both.
UBATCH = 512


def main():
    job = json.loads(sys.argv[1])
    c.llama_backend_init()
    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    model = c.llama_model_load_from_file(job["path"].encode(), c.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {job['path']}")
    params = c.llama_context_default_params()
    params.n_ctx = 8 + max(depth + tokens for _, tokens, depth in job["cases"])
    params.n_batch = params.n_ubatch = UBATCH
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

    def speed(phase, tokens, depth):
        c.llama_memory_clear(memory, True)
        decode(depth, UBATCH)
        start = time.perf_counter()
        decode(tokens, UBATCH if phase == "prefill" else 1)
        return tokens / (time.perf_counter() - start)

    speed("prefill", 8, 0)  # touches the weights
    speeds = [speed(*case) for case in job["cases"]]
    build = c.llama_print_system_info().decode().split("CPU : ")[-1].split(" | OPENMP")[0]
    print(json.dumps({"speeds": speeds, "build": build}))


if __name__ == "__main__":
    main()
