"""Installs peers by name, from package registries, built for this CPU, each in a folder of its own. Each function
returns what `runner` needs to time a model."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Nothing but the library.
LLAMA_CPP = ("-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF "
             "-DLLAMA_CURL=OFF ")
AVX2 = ("-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON "
        "-DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF")


class NotInstalled(Exception):
    """A peer that does not build here, and why."""


def llama_cpp(folder, cmake):
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        announce(folder)
        venv.create(folder, with_pip=True)
        environment = {**os.environ, "CMAKE_ARGS": LLAMA_CPP + cmake,
                       "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
        # A wheel that pip keeps may have been built with other flags.
        run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--no-binary", "llama-cpp-python", "numpy",
             "llama-cpp-python"], env=environment)
        (folder / "installed").touch()
    return [str(python), str(HERE / "time_llama_cpp.py")]


def cargo(folder, source, dependencies, limit):
    """A project with one file, built within `limit` seconds."""
    program = folder / "target/release/peer"
    main = folder / "src/main.rs"
    if not program.exists() or main.read_bytes() != (HERE / source).read_bytes():
        announce(folder)
        main.parent.mkdir(parents=True, exist_ok=True)
        manifest = '[package]\nname = "peer"\nversion = "0.0.0"\nedition = "2024"\n\n[workspace]\n'
        (folder / "Cargo.toml").write_text(manifest)
        for dependency in dependencies:
            run(["cargo", "add", "--quiet", *dependency.split()], cwd=folder)
        environment = {**os.environ, "RUSTFLAGS": "-C target-cpu=native", "CARGO_TARGET_DIR": str(folder / "target")}
        shutil.copy(HERE / source, main)
        run(["cargo", "build", "--quiet", "--release"], cwd=folder, env=environment, timeout=limit)
    return [str(program)]


def announce(folder):
    print(f"building {folder.name} in {folder}; this takes a while", file=sys.stderr)


def run(command, **more):
    command = [str(word) for word in command]
    try:
        subprocess.run(command, check=True, **more)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{' '.join(command)} takes more than {error.timeout} s") from error
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotInstalled(str(error)) from error


# Name: what installs it; what it has in GGUF's words; the instructions that ours is told to use.
PEERS = {
    "llama.cpp": (lambda folder: llama_cpp(folder, "-DGGML_NATIVE=ON"), ["Q4_0", "Q4_K_M", "Q8_0", "BF16"], None),
    "llama.cpp-avx2": (lambda folder: llama_cpp(folder, AVX2), ["Q4_0", "Q4_K_M", "Q8_0"], "avx2"),
    "candle": (lambda folder: cargo(folder, "time_candle.rs", ["candle-core", "candle-transformers"], 3600),
               ["Q4_0", "Q4_K_M", "Q8_0"], None),
    "mistralrs": (lambda folder: cargo(folder, "time_mistralrs.rs",
                                       ["mistralrs", "anyhow", "tokio --features macros,rt-multi-thread"], 1500),
                  ["Q4_0", "Q4_K_M", "Q8_0"], None),
}
