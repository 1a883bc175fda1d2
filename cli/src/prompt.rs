//! From a conversation to the tokens that the model is given: through its chat template, or as plain text.

use anyhow::Result;
use infer_runtime::{AddSpecial, ChatInput, ChatTemplate, Outline, Tokenizer};
use serde_json::Value;

use crate::args::AnswerArgs;
use crate::chat_file::{self, ChatFile};
use crate::exit::{CliError, wrong_use};
use crate::input;
use crate::terminal;

/// How conversations of one model become tokens.
pub struct Prompter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Prompter {
    /// The model's template, or the one that the flags name; says so if there is none.
    pub fn new(model: &Outline, args: &AnswerArgs, verbose: bool) -> Result<Prompter> {
        let no_tokenizer = || CliError::ModelFile("this model has no tokenizer.json, and text needs it".to_owned());
        let tokenizer = model.tokenizer()?.ok_or_else(no_tokenizer)?.clone();
        let template = if args.raw {
            None
        } else if let Some(path) = &args.chat_template {
            Some(template_file(path)?)
        } else {
            model.chat_template()?.cloned()
        };
        match &template {
            Some(template) if verbose => terminal::note(&format!("chat template: {}", template.path().display())),
            None if args.system.is_some() => {
                return Err(wrong_use(
                    "--system needs a chat template, and this model has none (--chat-template FILE gives it one)",
                ));
            }
            None if !args.raw => terminal::note(
                "This model has no chat template: it continues your text. (--chat-template FILE gives it one.)",
            ),
            _ => {}
        }
        Ok(Prompter { tokenizer, template })
    }

    /// Whether messages have roles; without a template they are one running text.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The token with which the template ends a turn.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.template.as_ref().and_then(|template| template.end_of_turn(&self.tokenizer))
    }

    /// The tokens after which the model is to answer.
    pub fn encode(&self, chat: &ChatFile) -> Result<Vec<u32>> {
        match &self.template {
            Some(template) => Ok(template.encode(&chat_input(chat, true), &self.tokenizer)?),
            None => Ok(self.tokenizer.encode(&running_text(&chat.messages), AddSpecial::Yes)?),
        }
    }
}

/// Reads and parses a template that the command line names.
pub fn template_file(path: &std::path::Path) -> Result<ChatTemplate> {
    let source = input::file_text(path).map_err(|error| CliError::ModelFile(format!("{error:#}")))?;
    Ok(ChatTemplate::parse(&source, path)?)
}

/// What the template is given.
pub fn chat_input(chat: &ChatFile, add_generation_prompt: bool) -> ChatInput {
    ChatInput {
        messages: Value::Array(chat.messages.clone()),
        tools: chat.tools.clone().unwrap_or_default(),
        add_generation_prompt,
        variables: chat.variables.clone(),
    }
}

/// Without a template, each message goes on where the last one ended; what the user adds begins a line.
fn running_text(messages: &[Value]) -> String {
    let mut text = String::new();
    for message in messages {
        if !text.is_empty() && chat_file::role(message) == "user" {
            text.push('\n');
        }
        text.push_str(chat_file::content(message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_file::message;

    #[test]
    fn without_a_template_the_messages_are_one_text() {
        let messages = [message("user", "Once"), message("assistant", " upon a time."), message("user", "Then")];
        assert_eq!(running_text(&messages), "Once upon a time.\nThen");
        assert_eq!(running_text(&[]), "");
    }
}
