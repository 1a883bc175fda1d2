//! Answers one prompt: the text on stdout as it comes, or one JSON object.

use std::time::{Duration, Instant};

use anyhow::Result;
use infer_runtime::{Error, Outline, StopReason};
use serde_json::{Value, json};

use crate::args::Cli;
use crate::chat_file::{self, ChatFile};
use crate::exit::CliError;
use crate::interrupt::Interrupts;
use crate::load;
use crate::output::{self, Stream};
use crate::prompt::Prompter;
use crate::terminal;
use crate::turn::{self, Turn, TurnOptions, rate};

/// Loads, answers, ends. `opening` is the time that the outline has taken.
pub fn run(cli: &Cli, outline: Outline, opening: Duration, prompt: &str, interrupts: &Interrupts) -> Result<()> {
    let start = Instant::now();
    let prompter = Prompter::new(&outline, &cli.answer, cli.model.verbose)?;
    let system = cli.answer.system.iter().map(|text| chat_file::message("system", text));
    let messages = system.chain([chat_file::message("user", prompt)]).collect();
    let ids = prompter.encode(&ChatFile { messages, ..ChatFile::default() })?;
    // Before the weights are loaded, which may take minutes.
    let context = outline.memory_plan()?.context;
    if ids.len() > context {
        return Err(Error::ContextFull { needed: ids.len(), context }.into());
    }
    let model = load::weights(outline, cli.model.verbose)?;
    let load = opening + start.elapsed();
    let options = TurnOptions::new(cli, &model, &prompter);
    let mut session = model.session();
    let mut stream = Stream::new();
    let show = |text: &str| if cli.answer.json { Ok(()) } else { stream.push(text) };
    let turn = turn::run(&mut session, &ids, &options, interrupts, show);
    stream.finish()?;
    let turn = turn?;
    if cli.answer.json {
        output::print(&format!("{}\n", object(&turn, load)))?;
    }
    if cli.model.verbose {
        terminal::note(&format!(
            "prompt {} tokens, {:.1} tok/s; answer {} tokens, {:.1} tok/s; seed {}",
            turn.prompt_tokens,
            rate(turn.prefilled(), turn.prefill),
            turn.ids.len(),
            rate(turn.ids.len(), turn.decode),
            turn.seed,
        ));
    }
    match turn.reason {
        StopReason::Cancelled => Err(CliError::Interrupted.into()),
        StopReason::ContextFull => {
            terminal::note(&format!(
                "infer: the context of {} tokens is full, so the answer ends here (--ctx sets its size)",
                model.context()
            ));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn object(turn: &Turn, load: Duration) -> Value {
    json!({
        "text": turn.text,
        "ids": turn.ids,
        "reason": reason(&turn.reason),
        "prompt_tokens": turn.prompt_tokens,
        "tokens": turn.ids.len(),
        "seed": turn.seed,
        "timings": {
            "load_s": load.as_secs_f64(),
            "prefill_s": turn.prefill.as_secs_f64(),
            "decode_s": turn.decode.as_secs_f64(),
            "prefill_tokens_per_s": rate(turn.prefilled(), turn.prefill),
            "decode_tokens_per_s": rate(turn.ids.len(), turn.decode),
        },
    })
}

/// Why an answer ended, as a word for programs.
fn reason(reason: &StopReason) -> &'static str {
    match reason {
        StopReason::EndToken(_) => "end_token",
        StopReason::StopString(_) => "stop_string",
        StopReason::MaxTokens => "max_tokens",
        StopReason::ContextFull => "context_full",
        StopReason::Cancelled => "cancelled",
        _ => "other",
    }
}
