//! The program `infer`: chat with a language model on your own machine, straight from its Hugging Face folder.

mod answer;
mod args;
mod bench;
mod cache;
mod chat;
mod chat_file;
mod closed_stdout;
mod demo;
mod exit;
mod input;
mod interrupt;
mod load;
mod logits;
mod out_file;
mod out_folder;
mod output;
mod prompt;
mod quantize;
mod sampling;
mod show;
mod terminal;
mod tokenize;
mod turn;
mod values;
mod version;
mod word_wrap;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches};

use args::{Cli, Command};
use interrupt::Interrupts;

fn main() -> ExitCode {
    exit::guarded(|| match run() {
        Ok(code) => ExitCode::from(code),
        Err(error) => exit::report(&error),
    })
}

fn run() -> Result<u8> {
    let interrupts = Interrupts::install()?;
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(usage) => {
            let code = if usage.use_stderr() { exit::WRONG_USE } else { exit::DONE };
            let printed = usage.print();
            return if usage.use_stderr() {
                Ok(code)
            } else {
                printed.context("cannot write to standard output").map(|()| code)
            };
        }
    };
    let cli = Cli::from_arg_matches(&matches)?;
    if cli.version {
        return version::run().map(|()| exit::DONE);
    }
    match &cli.command {
        Some(command) => {
            refuse_misplaced(&matches, command)?;
            match command {
                Command::Show(args) => show::run(args, &cli.model)?,
                Command::Logits(args) => logits::run(args, &cli.model, &interrupts)?,
                Command::Quantize(args) => quantize::run(args, &cli.model, &interrupts)?,
                Command::Cache(args) => cache::run(&args.command)?,
                Command::Bench(args) => bench::run(args, &cli.model)?,
                Command::Tokenize(args) => tokenize::run(args, &cli.model)?,
            }
        }
        None => answer_or_chat(&cli, &interrupts)?,
    }
    Ok(exit::DONE)
}

fn answer_or_chat(cli: &Cli, interrupts: &Interrupts) -> Result<()> {
    // A wrong path is told before a prompt is waited for.
    let start = Instant::now();
    let outline = load::for_text(&cli.model)?;
    let opening = start.elapsed();
    match input::prompt(&cli.answer)? {
        Some(prompt) => answer::run(cli, outline, opening, &prompt, interrupts),
        None => chat::run(cli, outline, interrupts),
    }
}

/// A prompt or a flag of answering beside a subcommand would have no effect; say so instead.
fn refuse_misplaced(matches: &ArgMatches, command: &Command) -> Result<()> {
    let name = command.name();
    let cli = Cli::command();
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let misplaced = cli.get_arguments().find(|arg| !arg.is_global_set() && given(arg.get_id().as_str()));
    match misplaced {
        None => Ok(()),
        Some(arg) if arg.is_positional() => Err(exit::wrong_use(format!("{name} takes no prompt before its name"))),
        Some(arg) => {
            let flag = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
            Err(exit::wrong_use(format!("{flag} before {name} has no effect; `infer {name} --help` lists its flags")))
        }
    }
}
