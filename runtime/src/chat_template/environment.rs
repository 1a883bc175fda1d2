//! The template engine, set up to behave as the reference's: Jinja2's sandbox with `trim_blocks`, `lstrip_blocks`
//! and loop controls, Python's methods and printing, and the functions that the reference adds.

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};
use serde_json::Value as Json;

use super::{filters, methods, time, values};

const NAME: &str = "chat";
/// Budget of work: an instruction is 1, 64 bytes of text are 1. Real templates need some hundred per message.
const FUEL: u64 = 2_000_000;
/// More of it for a longer conversation.
const FUEL_PER_BYTE: u64 = 20;
/// But no more than this: a value that is nested once in a few instructions must fit the stack when it is dropped.
const MOST_FUEL: u64 = 8_000_000;
/// Nested macros, includes and values.
const RECURSION: usize = 120;
/// A conversation longer than this is refused.
const LARGEST_OUTPUT: usize = 16 << 20;

/// What `raise_exception` said.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Parses `source` into an environment of its own.
pub(super) fn build(source: String) -> Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(methods::method);
    environment.set_formatter(values::print);
    filters::add(&mut environment);
    environment.add_function("raise_exception", |message: minijinja::Value| -> Result<minijinja::Value, Error> {
        let message = message.to_string();
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", time::strftime_now);
    environment.add_template_owned(NAME, source).map_err(|error| describe(&error).words)?;
    Ok(environment)
}

/// Why a template was not parsed or a conversation not rendered.
pub(super) struct Problem {
    /// What is wrong, in one line.
    pub words: String,
    /// Whose fault it is.
    pub fault: Fault,
}

/// Whose fault a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The template's.
    Template,
    /// An operation on a value that cannot take it; the value may come from the conversation.
    Value,
    /// The conversation's: the template raised an exception of its own.
    Conversation,
    /// The system's: it has no memory left.
    System,
}

impl From<String> for Problem {
    fn from(words: String) -> Problem {
        Problem { words, fault: Fault::Template }
    }
}

/// Renders the template over `context`.
pub(super) fn render(environment: &Environment<'static>, context: &Json) -> Result<String, Problem> {
    let mut environment = environment.clone();
    let size = context.to_string().len() as u64;
    environment.set_fuel(Some(FUEL.saturating_add(FUEL_PER_BYTE.saturating_mul(size)).min(MOST_FUEL)));
    let template = environment.get_template(NAME).map_err(|error| describe(&error))?;
    let mut out = Bounded(Vec::new());
    template.render_captured_to(values::from_json(context), &mut out).map_err(|error| describe(&error))?;
    String::from_utf8(out.0).map_err(|error| error.to_string().into())
}

/// Collects the output up to its limit.
struct Bounded(Vec<u8>);

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > LARGEST_OUTPUT {
            return Err(std::io::Error::other(format!("the conversation's text exceeds {LARGEST_OUTPUT} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One line for a person: the template's own words if it raised, else what failed and in which line.
fn describe(error: &Error) -> Problem {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            let words = format!("the template refuses this conversation: {message}");
            return Problem { words, fault: Fault::Conversation };
        }
        source = inner.source();
    }
    let place = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let words = match error.kind() {
        ErrorKind::OutOfFuel => format!("the template does not come to an end, or builds too much text{place}"),
        ErrorKind::WriteFailure => format!("the conversation's text exceeds {LARGEST_OUTPUT} bytes"),
        kind => format!("{}{place}", error.detail().map_or(kind.to_string(), |detail| format!("{kind}: {detail}"))),
    };
    let fault = match error.kind() {
        ErrorKind::InvalidOperation | ErrorKind::UndefinedError | ErrorKind::UnknownMethod => Fault::Value,
        _ => Fault::Template,
    };
    Problem { words, fault }
}
