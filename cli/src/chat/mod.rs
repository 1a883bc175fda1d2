//! The chat: reads what the user types, lets the model answer, and keeps the conversation in the KV cache.

mod command;
mod conversation;
mod editor;
mod totals;

use std::path::{Path, PathBuf};

use anyhow::Result;
use infer_runtime::{Error, Outline, Session, StopReason};

use crate::args::Cli;
use crate::chat_file::ChatFile;
use crate::exit::{self, wrong_use};
use crate::interrupt::Interrupts;
use crate::load::{self, Loaded};
use crate::out_file::OutFile;
use crate::output::Stream;
use crate::prompt::Prompter;
use crate::terminal;
use crate::turn::{self, Turn, TurnOptions};

use command::Command;
use conversation::Conversation;
use editor::{Input, Prompt};
use totals::Totals;

/// An answer should find at least this share of the context free, or the user is asked.
const ROOM_SHARE: usize = 8;
/// This much room is enough in any context.
const ROOM_TOKENS: usize = 256;

/// Loads, then talks until the user leaves.
pub fn run(cli: &Cli, outline: Outline, interrupts: &Interrupts) -> Result<()> {
    if cli.answer.json {
        return Err(wrong_use("--json needs a prompt (-p TEXT, -f FILE or standard input)"));
    }
    let prompter = Prompter::new(&outline, &cli.answer, cli.model.verbose)?;
    let model = load::weights(outline, cli.model.verbose)?;
    let mut chat = Chat {
        session: model.session(),
        conversation: Conversation::new(cli.answer.system.as_deref()),
        options: TurnOptions::new(cli, &model, &prompter),
        totals: Totals::default(),
        prompt: Prompt::new(interrupts)?,
        model,
        prompter,
        interrupts,
    };
    chat.note(&[format!("context {} tokens", chat.model.context()), "/help".to_owned(), "Ctrl-D leaves".to_owned()]);
    interrupts.set_chatting(true);
    let talked = chat.talk();
    // What the model still waits for at its end, Ctrl-C need not.
    interrupts.set_chatting(false);
    talked
}

struct Chat<'a> {
    model: Loaded,
    session: Session,
    prompter: Prompter,
    conversation: Conversation,
    options: TurnOptions,
    totals: Totals,
    prompt: Prompt,
    interrupts: &'a Interrupts,
}

impl Chat<'_> {
    fn talk(&mut self) -> Result<()> {
        loop {
            match self.prompt.read()? {
                Input::End | Input::Command(Ok(Command::Quit)) => return Ok(()),
                Input::Cleared => self.note(&["Ctrl-D leaves".to_owned()]),
                Input::Command(Err(problem)) => self.say(&problem),
                Input::Command(Ok(command)) => self.obey(command)?,
                Input::Text(text) => {
                    self.conversation.ask(&text);
                    self.reply()?;
                }
            }
        }
    }

    /// A faint line of several parts.
    fn note(&mut self, parts: &[String]) {
        let width = self.prompt.width();
        terminal::dim_note(parts, width);
    }

    fn say(&mut self, text: &str) {
        let width = self.prompt.width();
        terminal::wrapped_note(text, width);
    }

    /// Lets the model answer the last message. What goes wrong with it is said, and the message is taken back; only
    /// an output that is gone ends the chat.
    fn reply(&mut self) -> Result<()> {
        let answered = self.prompt_that_fits().and_then(|prompt| match prompt {
            None => Ok(None),
            Some(prompt) => {
                let mut stream = Stream::new();
                let show = |text: &str| stream.push(text);
                let turn = turn::run(&mut self.session, &prompt, &self.options, self.interrupts, show);
                stream.finish()?;
                turn.map(Some)
            }
        });
        match answered {
            Ok(Some(turn)) if turn.ids.is_empty() && matches!(turn.reason, StopReason::Cancelled) => {
                self.conversation.undo();
                self.say("Stopped before the answer; your message is taken back.");
            }
            Ok(Some(turn)) => self.answered(&turn),
            Ok(None) => drop(self.conversation.undo()),
            Err(error) if error.is::<Error>() || error.is::<exit::CliError>() => {
                self.conversation.undo();
                self.say(&exit::line(&error));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn answered(&mut self, turn: &Turn) {
        self.conversation.answer(&turn.text);
        self.totals.add(turn);
        let (used, context) = (self.session.tokens().len(), self.model.context());
        let mut parts = totals::of_turn(turn);
        parts.push(format!("context {used}/{context}"));
        match turn.reason {
            StopReason::Cancelled => parts.push("stopped".to_owned()),
            StopReason::MaxTokens => parts.push("--max-tokens reached".to_owned()),
            _ => {}
        }
        self.note(&parts);
        if matches!(turn.reason, StopReason::ContextFull) {
            self.say("The context is full, so the answer ends here.");
            self.say("/drop drops the oldest turns, then /regen answers again; --ctx sets the context's size.");
        }
    }

    /// The tokens of the conversation, once there is room for them and an answer. `None`: the user did not want to
    /// make room, or there is none.
    fn prompt_that_fits(&mut self) -> Result<Option<Vec<u32>>> {
        let context = self.model.context();
        let mut ids = self.prompter.encode(&self.conversation.chat)?;
        let enough = (context / ROOM_SHARE).clamp(1, ROOM_TOKENS);
        if ids.len() + enough > context && self.conversation.n_turns() > 1 {
            self.say(&format!("The conversation has {} tokens, the context {context}.", ids.len()));
            if self.prompt.confirm("Drop the oldest turns to make room?")? {
                ids = self.make_room(ids)?;
            }
        }
        if ids.len() >= context {
            self.say(&format!("That is {} tokens, and the context holds {context}: not sent.", ids.len()));
            return Ok(None);
        }
        Ok(Some(ids))
    }

    /// Drops the oldest turns until a quarter of the context is free, and gives the conversation's tokens.
    fn make_room(&mut self, mut ids: Vec<u32>) -> Result<Vec<u32>> {
        let context = self.model.context();
        let mut dropped = 0;
        while ids.len() + context / 4 > context && self.conversation.drop_oldest_turn() {
            dropped += 1;
            ids = self.prompter.encode(&self.conversation.chat)?;
        }
        let system = if self.conversation.system().is_some() { " The system message stays." } else { "" };
        self.say(&format!(
            "Dropped {dropped} of the oldest turns; {} of {context} tokens are left.{system}",
            ids.len()
        ));
        Ok(ids)
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        match command {
            Command::Help => terminal::note(&command::help(self.prompt.width())),
            Command::Clear => {
                self.conversation.clear();
                self.say("The conversation starts again.");
            }
            Command::Regen if self.conversation.forget_answer() => return self.reply(),
            Command::Regen => self.say("There is no message to answer."),
            Command::Undo => match self.conversation.undo() {
                Some(question) => self.say(&format!("Taken back: {}", shortened(&question))),
                None => self.say("There is nothing to take back."),
            },
            Command::Drop => self.drop_turns(),
            Command::System(None) => {
                let system = self.conversation.system().unwrap_or("There is no system message.").to_owned();
                self.say(&system);
            }
            Command::System(Some(_)) if !self.prompter.has_template() => {
                self.say("There is no chat template to put a system message into.");
            }
            Command::System(Some(text)) => {
                self.conversation.set_system(&text);
                self.say(if text.is_empty() { "No system message any more." } else { "The system message is set." });
            }
            Command::Set(None) => {
                for (name, value) in self.options.list() {
                    self.say(&format!("{name:18} {value}"));
                }
            }
            Command::Set(Some((name, value))) => match self.options.set(&name, &value) {
                Ok(()) => self.say(&format!("{name} is {value}")),
                Err(problem) => self.say(&format!("{name} {value}: {problem}")),
            },
            Command::Stats => {
                let parts = self.totals.parts();
                self.note(&parts);
            }
            Command::Save { path, cache } => self.save(&path, cache),
            Command::Load(path) => self.load(&path),
            // The loop that calls this ends on it.
            Command::Quit => {}
        }
        Ok(())
    }

    fn drop_turns(&mut self) {
        if self.conversation.n_turns() < 2 {
            self.say("There is only one turn; /clear starts again.");
            return;
        }
        self.conversation.drop_oldest_turn();
        let made_room = self.prompter.encode(&self.conversation.chat).and_then(|ids| self.make_room(ids));
        if let Err(error) = made_room {
            self.say(&exit::line(&error));
        }
    }

    fn save(&mut self, path: &Path, cache: bool) {
        let saved = OutFile::create(path, self.interrupts)
            .and_then(|file| file.finish(|out| out.write_all(self.conversation.chat.to_json().as_bytes())))
            .and_then(|()| if cache { Ok(self.session.save(cache_path(path))?) } else { Ok(()) });
        match saved {
            Ok(()) => self.say(&format!("Saved {} messages.", self.conversation.chat.messages.len())),
            Err(error) => self.say(&format!("Not saved: {}", exit::line(&error))),
        }
    }

    fn load(&mut self, path: &Path) {
        match ChatFile::read(path) {
            Err(error) => self.say(&exit::line(&error)),
            Ok(chat) => {
                self.conversation.chat = chat;
                self.say(&format!("Loaded {} messages.", self.conversation.chat.messages.len()));
                let cache = cache_path(path);
                if cache.exists()
                    && let Err(error) = self.session.restore(&cache)
                {
                    self.say(&format!("Its cache is computed anew: {}", exit::line(&error.into())));
                }
            }
        }
    }
}

/// Where `/save --cache` puts the KV cache of a conversation.
fn cache_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".cache");
    PathBuf::from(name)
}

/// The beginning of a text, on one line.
fn shortened(text: &str) -> String {
    let line = terminal::escape_controls(text);
    let mut short: String = line.chars().take(60).collect();
    if short.len() < line.len() {
        short.push('…');
    }
    short
}
