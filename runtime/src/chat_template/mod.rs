//! Conversations to text, by the Jinja template that comes with a model, as the reference library renders it.

mod arguments;
mod environment;
mod filters;
mod methods;
mod source;
mod time;
mod user_text;
mod values;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use minijinja::Environment;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fence::{fenced, one_line};
use crate::load::content;
use crate::tokenizer::{AddSpecial, Tokenizer};
use environment::{Fault, Problem};

/// A template larger than this is refused; the largest real ones are about 20 KiB.
const LARGEST_TEMPLATE: usize = 1 << 20;
/// The stack on which templates run: the engine recurses for nested values and macros.
const STACK: usize = 256 << 20;

/// A parsed chat template, with its variant for tools if the model has one.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    default: Parsed,
    tool_use: Option<Parsed>,
}

#[derive(Clone, Debug)]
struct Parsed {
    source: String,
    environment: Environment<'static>,
}

/// The files in which a model may bring its template, already read. `chat_template.jinja` comes before
/// `chat_template.json`, and that before `tokenizer_config.json`.
#[derive(Clone, Copy, Debug)]
pub struct TemplateFiles<'a> {
    /// The model's folder, for messages.
    pub folder: &'a Path,
    /// The text of chat_template.jinja.
    pub jinja: Option<&'a str>,
    /// chat_template.json: an object with the key `chat_template`.
    pub json: Option<&'a Value>,
    /// tokenizer_config.json, whose `chat_template` is a text or a list of `{name, template}`.
    pub config: Option<&'a Value>,
    /// The files of additional_chat_templates/: name without `.jinja`, and text.
    pub additional: &'a [(String, String)],
}

/// A conversation and what else the template may ask for.
#[derive(Clone, Debug, Default)]
pub struct ChatInput {
    /// A list of objects, each with `role` and `content` as a rule.
    pub messages: Value,
    /// A list of JSON schemas; null means none.
    pub tools: Value,
    /// Whether the text ends with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// Further variables of the template. They win over the tokenizer's `bos_token` and the like.
    pub variables: Map<String, Value>,
}

impl ChatInput {
    /// A conversation whose next message is the assistant's.
    pub fn new(messages: Value) -> ChatInput {
        ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() }
    }
}

impl ChatTemplate {
    /// Parses one template; `path` is where it came from.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] with the line where it does not parse.
    pub fn parse(source: &str, path: &Path) -> Result<ChatTemplate> {
        let default = Parsed::new(source).map_err(|problem| unusable(path, problem))?;
        Ok(ChatTemplate { path: path.to_owned(), default, tool_use: None })
    }

    /// The template of a model's folder; None if it has none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if the template that counts does not parse, or several are there and none is the default.
    pub fn from_files(files: &TemplateFiles<'_>) -> Result<Option<ChatTemplate>> {
        let from_json = |json: Option<&Value>| json.and_then(|json| json.get("chat_template")).cloned();
        let (name, found) = if let Some(text) = files.jinja {
            ("chat_template.jinja", Value::from(text))
        } else if let Some(value) = from_json(files.json).filter(|value| !value.is_null()) {
            ("chat_template.json", value)
        } else {
            ("tokenizer_config.json", from_json(files.config).unwrap_or(Value::Null))
        };
        let path = files.folder.join(name);
        let mut named: BTreeMap<String, String> = BTreeMap::new();
        match found {
            Value::Null => {}
            Value::String(text) => drop(named.insert("default".to_owned(), text)),
            Value::Array(entries) => {
                for entry in &entries {
                    let field = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                    match (field("name"), field("template")) {
                        (Some(name), Some(template)) => drop(named.insert(name, template)),
                        _ => {
                            return Err(chat_error(
                                &path,
                                "chat_template: each entry of the list needs name and template",
                            ));
                        }
                    }
                }
            }
            _ => return Err(chat_error(&path, "chat_template is neither a text nor a list of named templates")),
        }
        named.extend(files.additional.iter().cloned());
        if named.is_empty() {
            return Ok(None);
        }
        let Some(default) = named.get("default") else {
            let names: Vec<&str> = named.keys().map(String::as_str).collect();
            return Err(chat_error(
                &path,
                format!("none of the named chat templates is \"default\": {}", names.join(", ")),
            ));
        };
        let parse = |text: &String| Parsed::new(text).map_err(|problem| unusable(&path, problem));
        let tool_use = named.get("tool_use").map(parse).transpose()?;
        Ok(Some(ChatTemplate { default: parse(default)?, tool_use, path }))
    }

    /// Where the template came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The template's text (the default one of several).
    pub fn source(&self) -> &str {
        &self.default.source
    }

    /// The text of a conversation, exactly as the reference library's `apply_chat_template` renders it. `tokenizer`
    /// gives `bos_token` and the like.
    ///
    /// # Errors
    /// [`Error::ChatRefused`] if the messages are not a list of objects, or the template refuses them (its own words
    /// are in the message); [`Error::ChatTemplate`] if it does not come to an end or cannot be run.
    pub fn render(&self, input: &ChatInput, tokenizer: Option<&Tokenizer>) -> Result<String> {
        let context = context(input, tokenizer).map_err(|problem| self.refused(problem))?;
        self.choose(input).render(&context).map_err(|problem| self.not_rendered(problem, input))
    }

    /// The token ids of a conversation's text, without tokens around it: a template writes its begin token itself.
    /// If the input spells no control token, this is exactly `tokenizer.encode(text, AddSpecial::No)`.
    ///
    /// A control token that is spelt in a message, a tool or a document is not one: the text between the template's
    /// own control tokens, spellings included, is encoded as if the spelt tokens were not in the vocabulary. Control
    /// tokens are the special tokens, added tokens written `<|…|>`, `<s>` or `</s>`, and other added tokens that the
    /// template's source contains, such as `<think>`; these last ones are still recognised in an assistant's
    /// messages, since models write them themselves. `variables` are the program's own and not searched, except
    /// `documents`.
    ///
    /// # Errors
    /// Those of [`Self::render`] and [`Tokenizer::encode`].
    pub fn encode(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        self.render_and_encode(input, tokenizer).map(|(_, ids)| ids)
    }

    /// Text and ids of a conversation; see [`Self::render`] and [`Self::encode`].
    ///
    /// # Errors
    /// Those of [`Self::render`] and [`Tokenizer::encode`].
    pub fn render_and_encode(&self, input: &ChatInput, tokenizer: &Tokenizer) -> Result<(String, Vec<u32>)> {
        let text = self.render(input, Some(tokenizer))?;
        let parsed = self.choose(input);
        let control = user_text::ControlTokens::new(tokenizer, &parsed.source);
        let Some(marked) = control.mark(input, &parsed.source) else {
            let ids = tokenizer.encode(&text, AddSpecial::No)?;
            return Ok((text, ids));
        };
        let context = context(&marked.input, Some(tokenizer)).map_err(|problem| self.refused(problem))?;
        let rendered = parsed.render(&context).map_err(|problem| self.not_rendered(problem, input))?;
        let (plain_text, plain) = marked.spans(&rendered, &text, &control);
        let ids = tokenizer.encode_except(&plain_text, &plain)?;
        Ok((text, ids))
    }

    /// The special token that the template writes right behind an assistant's message, found by rendering a probe
    /// conversation. Generation should end at it.
    pub fn end_of_turn(&self, tokenizer: &Tokenizer) -> Option<u32> {
        const PROBE: &str = "Xq7answerXq7";
        let messages = serde_json::json!([
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": PROBE},
            {"role": "user", "content": "Thanks"},
        ]);
        let input = ChatInput { messages, ..ChatInput::default() };
        let text = self.render(&input, Some(tokenizer)).ok()?;
        let behind = text.get(text.find(PROBE)? + PROBE.len()..)?.trim_start();
        let mut tokens: Vec<_> =
            tokenizer.added_tokens().filter(|(_, token)| behind.starts_with(&token.content)).collect();
        tokens.retain(|(id, token)| tokenizer.is_special(*id) || user_text::looks_like_control(&token.content));
        tokens.into_iter().max_by_key(|(_, token)| token.content.len()).map(|(id, _)| id)
    }

    fn refused(&self, problem: String) -> Error {
        Error::ChatRefused { path: self.path.clone(), problem: one_line(&problem) }
    }

    /// A template that fails on a value is not to blame if a message lacks what every message has.
    fn not_rendered(&self, problem: Problem, input: &ChatInput) -> Error {
        match (problem.fault, without_text(&input.messages)) {
            (Fault::Conversation, _) => self.refused(problem.words),
            (Fault::Value, Some(reason)) => self.refused(format!("{reason}: {}", problem.words)),
            _ => unusable(&self.path, problem),
        }
    }

    fn choose(&self, input: &ChatInput) -> &Parsed {
        self.tool_use.as_ref().filter(|_| !input.tools.is_null()).unwrap_or(&self.default)
    }
}

impl Parsed {
    fn new(source: &str) -> Result<Parsed, Problem> {
        if let Some(problem) = content::foreign(source.as_bytes()) {
            return Err(problem.to_owned().into());
        }
        if source.len() > LARGEST_TEMPLATE {
            return Err(format!("the template has {} bytes, expected at most {LARGEST_TEMPLATE}", source.len()).into());
        }
        let environment = on_large_stack(|| Ok(environment::build(source::rewrite(source)?)?))?;
        Ok(Parsed { source: source.to_owned(), environment })
    }

    fn render(&self, context: &Value) -> Result<String, Problem> {
        on_large_stack(|| environment::render(&self.environment, context))
    }
}

/// Runs a call into the engine fenced, and on a thread with a large stack.
fn on_large_stack<R: Send>(work: impl FnOnce() -> Result<R, Problem> + Send) -> Result<R, Problem> {
    let fenced_work =
        || fenced(work).unwrap_or_else(|panic| Err(format!("the template engine failed: {panic}").into()));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        match thread.spawn_scoped(scope, fenced_work) {
            Ok(handle) => handle.join().unwrap_or_else(|_| Err("the template engine failed".to_owned().into())),
            Err(error) => {
                let words = format!("cannot start a thread with a stack of {STACK} bytes for the template: {error}");
                Err(Problem { words, fault: Fault::System })
            }
        }
    })
}

fn unusable(path: &Path, problem: Problem) -> Error {
    match problem.fault {
        Fault::System => Error::Memory(problem.words),
        _ => chat_error(path, problem.words),
    }
}

fn chat_error(path: &Path, problem: impl AsRef<str>) -> Error {
    Error::ChatTemplate { path: path.to_owned(), problem: one_line(problem.as_ref()) }
}

/// The template's variables, prepared as the reference prepares them: keys of a message whose value is null are
/// left out, and reasoning given under any of its three names is there under the others.
fn context(input: &ChatInput, tokenizer: Option<&Tokenizer>) -> Result<Value, String> {
    let Value::Array(messages) = &input.messages else {
        return Err("messages: expected a list of objects".to_owned());
    };
    if messages.is_empty() {
        return Err("messages: expected at least one message".to_owned());
    }
    let messages = messages.iter().enumerate().map(|(index, message)| match message {
        Value::Object(fields) => Ok(Value::Object(prepared_message(fields))),
        _ => Err(format!("messages: number {} is not an object", index + 1)),
    });
    let messages: Vec<Value> = messages.collect::<Result<_, _>>()?;
    match &input.tools {
        Value::Null => {}
        Value::Array(tools) if tools.iter().all(Value::is_object) => {}
        _ => return Err("tools: expected a list of objects, or null".to_owned()),
    }
    let mut context = Map::new();
    if let Some(tokenizer) = tokenizer {
        context.extend(tokenizer.named_tokens().map(|(key, token)| (key.to_owned(), Value::from(token))));
    }
    context.insert("documents".to_owned(), Value::Null);
    context.extend(input.variables.clone());
    context.insert("messages".to_owned(), Value::Array(messages));
    context.insert("tools".to_owned(), input.tools.clone());
    context.insert("add_generation_prompt".to_owned(), Value::Bool(input.add_generation_prompt));
    Ok(Value::Object(context))
}

/// The first message whose role or content is no text, in words.
fn without_text(messages: &Value) -> Option<String> {
    let messages = messages.as_array()?.iter().enumerate();
    let mut missing = messages.flat_map(|(index, message)| {
        let without = ["role", "content"].into_iter().filter(|key| !message.get(*key).is_some_and(Value::is_string));
        without.map(move |key| format!("messages: number {} has no text as its {key}", index + 1))
    });
    missing.next()
}

fn prepared_message(fields: &Map<String, Value>) -> Map<String, Value> {
    let present = |key: &&str| fields.get(*key).is_some_and(|value| !value.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"].into_iter().find(present);
    let reasoning = reasoning.and_then(|key| fields.get(key)).cloned();
    let mut message = Map::new();
    if let Some(reasoning) = &reasoning {
        message.insert("thinking".to_owned(), reasoning.clone());
    }
    message.extend(fields.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())));
    if let Some(reasoning) = reasoning {
        message.insert("reasoning_content".to_owned(), reasoning);
    }
    message
}
