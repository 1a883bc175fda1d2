//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use infer_runtime::{Override, Shape};

use crate::values::{self, Numbers};

const EXAMPLES: &str = "\
Examples:
  infer                                         chat with the tiny model inside the program
  infer --model ~/models/Llama-3.2-1B-Instruct  chat with a Hugging Face folder
  infer --model model.safetensors --q4          the same, in a quarter of the memory
  infer --model DIR \"Why is the sky blue?\"      answer once
  git diff | infer --model DIR -p \"Review this\" a prompt, then the piped text
  infer --model DIR --json -p Hi | jq .text     for scripts
  infer show --model DIR --ctx 8192             what it is and what it needs

Exit codes:
  0 done, 1 other failure, 2 wrong use, 3 model files, 4 no memory or disk space,
  5 device, 130 interrupted";

/// Chat with a language model on your own machine, straight from its Hugging Face folder.
///
/// Without a prompt and on a terminal, infer opens a chat; with a prompt or piped text it answers once, with nothing
/// but the answer on standard output.
#[derive(Debug, Parser)]
#[command(name = "infer", after_help = EXAMPLES, max_term_width = 100, disable_version_flag = true, args_override_self = true)]
#[command(override_usage = "infer [OPTIONS] [PROMPT]\n       infer [OPTIONS] <COMMAND>")]
pub struct Cli {
    /// What to do instead of answering.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the version and the CPU instructions in use
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Which model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// The prompt and how it is answered.
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// How tokens are chosen.
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what a model is and what memory it needs
    Show(ShowArgs),
    /// Write the logits of a list of tokens to a safetensors file
    Logits(LogitsArgs),
    /// Write a folder with quantized weights that --model opens
    Quantize(QuantizeArgs),
    /// List or remove the quantized models that are kept
    Cache(CacheArgs),
    /// Measure the speed, and its share of what the machine can do
    Bench(BenchArgs),
    /// Turn text into token ids, ids into text, or render a chat
    Tokenize(TokenizeArgs),
}

impl Command {
    /// The name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Show(_) => "show",
            Command::Logits(_) => "logits",
            Command::Quantize(_) => "quantize",
            Command::Cache(_) => "cache",
            Command::Bench(_) => "bench",
            Command::Tokenize(_) => "tokenize",
        }
    }
}

/// Flags of every command: the model and what it may use.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// A Hugging Face folder or a .safetensors file; without it, a tiny model inside the program
    #[arg(short, long, value_name = "PATH", global = true)]
    pub model: Option<PathBuf>,
    /// Quantize the weights to 8 bits while loading
    #[arg(long, global = true, conflicts_with = "q4")]
    pub q8: bool,
    /// Quantize the weights to 4 bits while loading
    #[arg(long, global = true)]
    pub q4: bool,
    /// Make some matrices q8, q4 or stored, such as 'model.layers.*.mlp.down_proj=q8' (may be given several times)
    #[arg(long = "override", value_name = "GLOB=FORMAT", global = true, value_parser = values::override_of, allow_hyphen_values = true)]
    pub overrides: Vec<Override>,
    /// Neither use nor keep quantized weights in the user's cache
    #[arg(long, global = true)]
    pub no_cache: bool,
    /// Most tokens that the conversation may hold [default: the model's context, or what fits]
    #[arg(long, value_name = "TOKENS", global = true, value_parser = values::count, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
    /// Type of the KV cache [default: f16, or bf16 if the weights are; f32 with --compute f32]
    #[arg(long, value_name = "TYPE", global = true)]
    pub kv: Option<KvArg>,
    /// Arithmetic: auto is fast, f32 is exact [default: auto; logits: f32]
    #[arg(long, value_name = "TYPE", global = true)]
    pub compute: Option<ComputeArg>,
    /// Threads [default: the physical cores that the process may use]; bench takes a list
    #[arg(short, long, value_name = "N", global = true, value_parser = values::threads, allow_hyphen_values = true)]
    pub threads: Option<Numbers>,
    /// Memory to plan with, such as 8G [default: what is available]
    #[arg(long, value_name = "BYTES", global = true, value_parser = values::size, allow_hyphen_values = true)]
    pub memory: Option<u64>,
    /// Say on stderr what is loaded and how it is run
    #[arg(short, long, global = true)]
    pub verbose: bool,
}

/// Types of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    F32,
    F16,
    Bf16,
    Q8,
}

/// Arithmetic of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ComputeArg {
    Auto,
    F32,
}

/// The prompt and how it is answered.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answer")]
pub struct AnswerArgs {
    /// What to answer; a prompt spelt like a command goes to -p
    #[arg(value_name = "PROMPT", conflicts_with_all = ["prompt", "file"])]
    pub positional_prompt: Option<String>,
    /// The prompt (any text, also one that begins with - or is a command's name)
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "file")]
    pub prompt: Option<String>,
    /// Read the prompt from a file
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The system message
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "raw")]
    pub system: Option<String>,
    /// Continue the text as it is, without the chat template
    #[arg(long)]
    pub raw: bool,
    /// Use this Jinja template instead of the model's own
    #[arg(long, value_name = "FILE", conflicts_with = "raw")]
    pub chat_template: Option<PathBuf>,
    /// Most tokens of an answer [default: until the model ends it or the context is full]
    #[arg(short = 'n', long, value_name = "N", value_parser = values::count, allow_hyphen_values = true)]
    pub max_tokens: Option<usize>,
    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", value_parser = values::stop, allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Print one JSON object: text, ids, reason, timings
    #[arg(long)]
    pub json: bool,
}

/// How tokens are chosen. What is not given comes from the model's generation_config.json.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Randomness; 0 takes the likeliest token
    #[arg(long, value_name = "T", value_parser = values::temperature, allow_hyphen_values = true)]
    pub temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 is off
    #[arg(long, value_name = "K", value_parser = values::top_k, allow_hyphen_values = true)]
    pub top_k: Option<usize>,
    /// Choose among the likeliest tokens that together reach this probability
    #[arg(long, value_name = "P", value_parser = values::probability, allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Drop tokens below this share of the likeliest one's probability
    #[arg(long, value_name = "P", value_parser = values::probability, allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that were used; 1 is off
    #[arg(long, value_name = "X", value_parser = values::repeat_penalty, allow_hyphen_values = true)]
    pub repeat_penalty: Option<f32>,
    /// Lower the logits of tokens that were used, once
    #[arg(long, value_name = "X", value_parser = values::penalty, allow_hyphen_values = true)]
    pub presence_penalty: Option<f32>,
    /// Lower the logits of tokens that were used, each time
    #[arg(long, value_name = "X", value_parser = values::penalty, allow_hyphen_values = true)]
    pub frequency_penalty: Option<f32>,
    /// Makes the random choices repeatable
    #[arg(long, value_name = "N", value_parser = values::seed, allow_hyphen_values = true)]
    pub seed: Option<u64>,
}

/// Flags of `infer show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Flags of `infer logits`.
#[derive(Debug, Args)]
#[command(after_help = "\
Computes in f32 with an f32 cache unless --compute or --kv say otherwise. Writes
  logits       [tokens, vocabulary] f32: row i follows the first i + 1 tokens
  tokens       [N] i64: with --decode, the likeliest token of each step
  step_logits  [N, vocabulary] f32: with --decode, the logits that chose each of them

Example:
  infer logits --model DIR --tokens 1,15043,29892 --decode 8 --out logits.safetensors")]
pub struct LogitsArgs {
    /// Token ids of the prompt, such as 1,2,3
    #[arg(long, value_name = "IDS", allow_hyphen_values = true)]
    pub tokens: String,
    /// Go on for N tokens, always taking the likeliest; end tokens do not end it
    #[arg(long, value_name = "N")]
    pub decode: Option<usize>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Flags of `infer quantize`.
#[derive(Debug, Args)]
#[command(after_help = "\
The folder has config, tokenizer and template too, and is opened without --q4 or --q8.

Example:
  infer quantize --model DIR --q4 -o DIR-q4 && infer --model DIR-q4")]
pub struct QuantizeArgs {
    /// The folder to write
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Replace the folder if it holds something
    #[arg(long)]
    pub force: bool,
}

/// Commands of `infer cache`.
#[derive(Debug, Args)]
pub struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: CacheCommand,
}

/// What `infer cache` does.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// List the models that are kept: size, name, where each came from
    Ls {
        /// Print one JSON array
        #[arg(long)]
        json: bool,
    },
    /// Remove models, and what was left unfinished
    Rm {
        /// Names as `ls` lists them
        #[arg(value_name = "NAME", required_unless_present = "all")]
        names: Vec<String>,
        /// Remove all of them
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Print the folder that they are kept in
    Path,
}

/// Flags of `infer bench`.
#[derive(Debug, Args)]
#[command(after_help = "\
Lists such as 1,2 are measured in all combinations. Speeds are medians; the limits (reading 1 GiB of
memory, int8, bf16 or f32 arithmetic) are measured in turns with the work, with the same threads and
instructions, and the share is that of the nearer one.

Examples:
  infer bench --model DIR --q4                       prefill of 512 tokens, decode of 128
  infer bench --shape llama-3-8b --q4 -t 1,2 -b 1,8  random weights: nothing to download
  infer bench --shape mixtral-8x7b/4 --q8 --json     four layers; for scripts")]
pub struct BenchArgs {
    /// Measure random weights of this shape instead of a model, such as llama-3-8b, or llama-3-8b/4
    /// for its first 4 layers; quantized, they are kept like a model's (see infer cache)
    #[arg(long, value_name = "NAME", value_parser = values::shape)]
    pub shape: Option<Shape>,
    /// Tokens of a prompt; 0 leaves it out
    #[arg(short = 'p', long, value_name = "N", default_value = "512", value_parser = values::numbers, allow_hyphen_values = true)]
    pub prefill: Numbers,
    /// Tokens that are generated; 0 leaves it out
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_parser = values::numbers, allow_hyphen_values = true)]
    pub decode: Numbers,
    /// Tokens that are in the cache before
    #[arg(short, long, value_name = "N", default_value = "0", value_parser = values::numbers, allow_hyphen_values = true)]
    pub depth: Numbers,
    /// Sequences in one forward pass
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = values::counts, allow_hyphen_values = true)]
    pub batch: Numbers,
    /// How often each is measured
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = values::count, allow_hyphen_values = true)]
    pub repetitions: usize,
    /// Say where the time of a token goes
    #[arg(long)]
    pub profile: bool,
    /// Print a Markdown table
    #[arg(long, conflicts_with = "json")]
    pub markdown: bool,
    /// Print a JSON array
    #[arg(long)]
    pub json: bool,
}

/// Flags of `infer tokenize`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads standard input byte for byte unless --text, --ids or --chat is given. Needs no weights.

Examples:
  printf 'Hello' | infer tokenize --model DIR --json    {\"ids\":[1,15043]}
  infer tokenize --model DIR --ids 1,15043 --json       {\"text\":\"<s> Hello\"}
  infer tokenize --model DIR --chat chat.json --json    {\"text\":…,\"ids\":[…]}
A chat file is {\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"tools\":…,…}; further keys are
variables of the template.")]
pub struct TokenizeArgs {
    /// The text to encode, instead of standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with_all = ["ids", "chat"])]
    pub text: Option<String>,
    /// Add no special tokens (those written in the text are still recognised)
    #[arg(long, conflicts_with_all = ["ids", "chat"])]
    pub no_special: bool,
    /// Decode these token ids; --ids= is the empty list
    #[arg(long, value_name = "IDS", allow_hyphen_values = true, conflicts_with = "chat")]
    pub ids: Option<String>,
    /// Leave special tokens out of the decoded text
    #[arg(long, requires = "ids")]
    pub skip_special: bool,
    /// Render the conversation of a JSON file with the chat template
    #[arg(long, value_name = "FILE")]
    pub chat: Option<PathBuf>,
    /// End after the last message, without the beginning of an answer
    #[arg(long, requires = "chat")]
    pub no_generation_prompt: bool,
    /// Use this Jinja template instead of the model's own
    #[arg(long, value_name = "FILE", requires = "chat")]
    pub chat_template: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
