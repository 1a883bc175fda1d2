//! A conversation in a JSON file: `{"messages":[{"role":…,"content":…},…],"tools":…,…}`. `infer tokenize --chat` reads
//! it, and the chat saves and loads it.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use crate::exit::wrong_use;
use crate::input;

/// What a chat template is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatFile {
    /// Objects with a role and a content, and whatever else the template reads.
    pub messages: Vec<Value>,
    /// The tools that the model may call; none and null are the same.
    pub tools: Option<Value>,
    /// All other keys of the file: variables of the template.
    pub variables: Map<String, Value>,
}

impl ChatFile {
    /// Reads and checks a file. All its errors are wrong use.
    pub fn read(path: &Path) -> Result<ChatFile> {
        let text = input::file_text(path)?;
        ChatFile::parse(&text).map_err(|problem| wrong_use(format!("{}: {problem}", path.display())))
    }

    fn parse(text: &str) -> Result<ChatFile, String> {
        let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
        let Value::Object(mut variables) = value else {
            return Err(format!("expected an object with \"messages\", found {}", kind(&value)));
        };
        let messages = match variables.shift_remove("messages") {
            Some(Value::Array(messages)) => messages,
            Some(other) => return Err(format!("\"messages\" must be a list, found {}", kind(&other))),
            None => return Err("expected the key \"messages\", a list of messages".to_owned()),
        };
        if let Some((index, message)) = messages.iter().enumerate().find(|(_, message)| !message.is_object()) {
            return Err(format!(
                "message {index} must be an object with a role and a content, found {}",
                kind(message)
            ));
        }
        let tools = variables.shift_remove("tools").filter(|tools| !tools.is_null());
        Ok(ChatFile { messages, tools, variables })
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let mut file = Map::new();
        file.insert("messages".to_owned(), Value::Array(self.messages.clone()));
        if let Some(tools) = &self.tools {
            file.insert("tools".to_owned(), tools.clone());
        }
        file.extend(self.variables.clone());
        format!("{:#}\n", Value::Object(file))
    }
}

/// A message.
pub fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// The role of a message; empty if it has none.
pub fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// The text of a message; empty if it is not a plain text.
pub fn content(message: &Value) -> &str {
    message.get("content").and_then(Value::as_str).unwrap_or_default()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_survives_its_file_with_all_its_keys() {
        let text = r#"{"messages":[{"role":"user","content":"Hi é"}],"tools":[{"name":"f"}],"z":1,"a":null}"#;
        let chat = ChatFile::parse(text).expect("a good file");
        assert_eq!(chat.variables.keys().collect::<Vec<_>>(), ["z", "a"], "keys keep their order");
        assert_eq!(ChatFile::parse(&chat.to_json()), Ok(chat));
        let null_tools = ChatFile::parse(r#"{"messages":[],"tools":null}"#).expect("a good file");
        assert_eq!(null_tools.tools, None);
    }

    #[test]
    fn a_bad_chat_file_says_what_is_wrong() {
        for (text, reason) in [
            ("", "not JSON"),
            ("{", "not JSON"),
            ("[]", "found a list"),
            ("{}", "messages"),
            (r#"{"messages":{}}"#, "found an object"),
            (r#"{"messages":["hi"]}"#, "message 0"),
            (r#"{"messages":[{},null]}"#, "message 1"),
        ] {
            let problem = ChatFile::parse(text).expect_err(text);
            assert!(problem.contains(reason), "{text}: {problem}");
        }
    }
}
