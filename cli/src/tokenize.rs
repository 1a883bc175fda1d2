//! `infer tokenize`: text to token ids, ids to text, and chats through the template. Needs no weights.

use anyhow::Result;
use infer_runtime::{AddSpecial, TextFiles, Tokenizer};
use serde_json::json;

use crate::args::{ModelArgs, TokenizeArgs};
use crate::chat_file::ChatFile;
use crate::demo;
use crate::exit::wrong_use;
use crate::input;
use crate::output;
use crate::prompt;
use crate::values;

/// Reads, converts, prints.
pub fn run(args: &TokenizeArgs, model_args: &ModelArgs) -> Result<()> {
    // Read before the model's files are opened: whoever writes to our standard input gets rid of it in any case.
    let work = match (&args.ids, &args.chat, &args.text) {
        (Some(ids), ..) => Work::Decode(values::tokens("--ids", ids)?),
        (_, Some(path), _) => Work::Chat(ChatFile::read(path)?),
        (.., Some(text)) => Work::Encode(text.clone()),
        _ => Work::Encode(input::stdin_text()?),
    };
    let files = match &model_args.model {
        Some(path) => TextFiles::open(path)?,
        None => TextFiles::from_bytes(demo::files())?,
    };
    let tokenizer = files.tokenizer();
    let (object, plain) = match work {
        Work::Encode(text) => {
            let special = if args.no_special { AddSpecial::No } else { AddSpecial::Yes };
            let ids = tokenizer.encode(&text, special)?;
            (json!({ "ids": ids }), listing(tokenizer, &ids))
        }
        Work::Decode(ids) => {
            let text = decode(tokenizer, &ids, args.skip_special)?;
            (json!({ "text": text }), format!("{text}\n"))
        }
        Work::Chat(chat) => {
            let template = match &args.chat_template {
                Some(path) => prompt::template_file(path)?,
                None => files.chat_template()?.cloned().ok_or_else(|| {
                    wrong_use("--chat: this model has no chat template (--chat-template FILE gives it one)")
                })?,
            };
            let input = prompt::chat_input(&chat, !args.no_generation_prompt);
            let (text, ids) = template.render_and_encode(&input, tokenizer)?;
            (json!({ "text": text, "ids": ids }), format!("{text}\n"))
        }
    };
    output::print(&if args.json { format!("{object}\n") } else { plain })
}

enum Work {
    Encode(String),
    Decode(Vec<u32>),
    Chat(ChatFile),
}

/// A vocabulary may have gaps, whose ids have no text; beyond its end an id is a mistake.
fn decode(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> Result<String> {
    let vocab_size = tokenizer.vocab_size();
    match ids.iter().find(|&&id| id as usize >= vocab_size) {
        Some(id) => {
            Err(wrong_use(format!("--ids: expected ids below {vocab_size}, the vocabulary's size, found {id}")))
        }
        None => Ok(tokenizer.decode(ids, skip_special)?),
    }
}

/// A line for each token: its id, and how the vocabulary spells it.
fn listing(tokenizer: &Tokenizer, ids: &[u32]) -> String {
    let line = |&id: &u32| format!("{id}\t{:?}\n", tokenizer.id_to_token(id).unwrap_or_default());
    ids.iter().map(line).collect()
}
