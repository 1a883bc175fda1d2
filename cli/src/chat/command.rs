//! The commands of the chat: lines that begin with a slash. They are never sent to the model.

use std::path::PathBuf;

/// A command, read from its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// List the commands.
    Help,
    /// Forget the conversation, keep the system message.
    Clear,
    /// Answer the last message again.
    Regen,
    /// Take back the last message and its answer.
    Undo,
    /// Drop the oldest messages, so that the next answer has room.
    Drop,
    /// Show the system message (`None`), or set it (empty: remove it).
    System(Option<String>),
    /// Show the options (`None`), or set one.
    Set(Option<(String, String)>),
    /// Show what the conversation cost so far.
    Stats,
    /// Write the conversation, with the KV cache beside it if asked.
    Save {
        /// Where to.
        path: PathBuf,
        /// Whether to write the cache too.
        cache: bool,
    },
    /// Read a conversation.
    Load(PathBuf),
    /// Leave.
    Quit,
}

/// Name, argument and purpose of each command, as /help shows them.
pub const COMMANDS: [(&str, &str, &str); 11] = [
    ("/help", "", "this list"),
    ("/clear", "", "start again; the system message stays"),
    ("/regen", "", "answer the last message again"),
    ("/undo", "", "take back the last message, answer too"),
    ("/drop", "", "drop the oldest messages to make room"),
    ("/system", "[TEXT|-]", "show, set or remove (-) system message"),
    ("/set", "[NAME VALUE]", "show or set sampling options"),
    ("/stats", "", "tokens and speed of this conversation"),
    ("/save", "[--cache] FILE", "write the conversation (and KV cache)"),
    ("/load", "FILE", "go on with a saved conversation"),
    ("/quit", "", "leave (so does Ctrl-D)"),
];

/// What /help says below the list.
const HELP_FOOTER: &str = "\
A line that ends in \\ goes on below.
So does \"\"\" text, to the next \"\"\".
Ctrl-C stops an answer, or clears your
line; it never leaves the chat.";

/// The text of /help, for a terminal of `width` columns.
pub fn help(width: usize) -> String {
    let left =
        |name: &str, argument: &str| if argument.is_empty() { name.to_owned() } else { format!("{name} {argument}") };
    let widest = COMMANDS.iter().map(|(name, argument, _)| left(name, argument).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, argument, purpose) in COMMANDS {
        let left = left(name, argument);
        if widest + 2 + purpose.len() <= width {
            text.push_str(&format!("{left:widest$}  {purpose}\n"));
        } else {
            text.push_str(&format!("{left}\n  {purpose}\n"));
        }
    }
    text + HELP_FOOTER
}

/// Reads a line that begins with a slash. Err says what is wrong with it.
pub fn parse(line: &str) -> Result<Command, String> {
    let (name, argument) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let argument = argument.trim();
    let bare = |command: Command| {
        if argument.is_empty() { Ok(command) } else { Err(format!("{name} takes no argument")) }
    };
    match name {
        "/help" | "/?" => bare(Command::Help),
        "/clear" => bare(Command::Clear),
        "/regen" => bare(Command::Regen),
        "/undo" => bare(Command::Undo),
        "/drop" => bare(Command::Drop),
        "/stats" => bare(Command::Stats),
        "/quit" | "/exit" => bare(Command::Quit),
        "/system" => Ok(Command::System(match argument {
            "" => None,
            "-" => Some(String::new()),
            text => Some(text.to_owned()),
        })),
        "/set" if argument.is_empty() => Ok(Command::Set(None)),
        "/set" => match argument.split_once(|c: char| c.is_whitespace() || c == '=') {
            Some((name, value)) if !value.trim().is_empty() => {
                Ok(Command::Set(Some((name.to_owned(), value.trim().to_owned()))))
            }
            _ => Err("expected /set NAME VALUE, such as /set temperature 0.7".to_owned()),
        },
        "/save" => {
            let (cache, path) = match argument.strip_prefix("--cache") {
                Some(rest) if rest.is_empty() || rest.starts_with(char::is_whitespace) => (true, rest.trim_start()),
                _ => (false, argument),
            };
            if path.is_empty() {
                Err("expected /save FILE".to_owned())
            } else {
                Ok(Command::Save { path: file(path), cache })
            }
        }
        "/load" if argument.is_empty() => Err("expected /load FILE".to_owned()),
        "/load" => Ok(Command::Load(file(argument))),
        _ => Err(format!("{name} is no command; /help lists them (a space before it sends it to the model)")),
    }
}

/// A file as a user names it: no shell is there to replace `~`.
fn file(name: &str) -> PathBuf {
    match (name.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_with_their_arguments_or_refused() {
        let cases = [
            ("/help", Command::Help),
            ("/quit ", Command::Quit),
            ("/exit", Command::Quit),
            ("/system", Command::System(None)),
            ("/system -", Command::System(Some(String::new()))),
            ("/system Be brief.\nAnd kind.", Command::System(Some("Be brief.\nAnd kind.".to_owned()))),
            ("/set", Command::Set(None)),
            ("/set top_p 0.9", Command::Set(Some(("top_p".to_owned(), "0.9".to_owned())))),
            ("/set top-k=40", Command::Set(Some(("top-k".to_owned(), "40".to_owned())))),
            ("/save my chat.json", Command::Save { path: "my chat.json".into(), cache: false }),
            ("/save --cache c.json", Command::Save { path: "c.json".into(), cache: true }),
            ("/save --cached", Command::Save { path: "--cached".into(), cache: false }),
            ("/load c.json", Command::Load("c.json".into())),
        ];
        for (line, expected) in cases {
            assert_eq!(parse(line), Ok(expected), "{line}");
        }
        for line in ["/", "/hepl", "/clear all", "/set top_p", "/save", "/save --cache", "/load"] {
            assert!(parse(line).is_err(), "{line} must be refused");
        }
    }

    #[test]
    fn help_fits_narrow_terminals() {
        for width in [40, 80] {
            let listed = help(width);
            for line in listed.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
            for (name, ..) in COMMANDS {
                assert!(listed.contains(name), "{name}");
            }
        }
    }
}
