//! Chat templates against what the reference library rendered (`tests/golden/templates.json`, made by
//! `make_templates.py`, and the rendered chats of a real model where `../shared` is there).

use std::path::{Path, PathBuf};

use infer_runtime::{ChatInput, ChatTemplate, Error};
use serde_json::{Map, Value};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn input(row: &Value, variables: &str) -> ChatInput {
    ChatInput {
        messages: row["messages"].clone(),
        tools: row["tools"].clone(),
        add_generation_prompt: row["add_generation_prompt"].as_bool().unwrap_or(false),
        variables: row[variables].as_object().cloned().unwrap_or_else(Map::new),
    }
}

fn render(template: &str, input: &ChatInput) -> Result<String, String> {
    let template =
        ChatTemplate::parse(template, Path::new("chat_template.jinja")).map_err(|error| error.to_string())?;
    template.render(input, None).map_err(|error| match error {
        Error::ChatTemplate { problem, .. } | Error::ChatRefused { problem, .. } => problem,
        other => other.to_string(),
    })
}

/// Compares one row; a text describes the difference.
fn difference(name: &str, row: &Value, got: &Result<String, String>) -> Option<String> {
    let words = row["error"].as_str();
    match (row["rendered"].as_str(), got) {
        (Some(expected), Ok(text)) if text == expected => None,
        (Some(expected), got) => Some(format!("{name}\n  expected {expected:?}\n  got      {got:?}")),
        (None, Err(problem))
            if words.is_none_or(|words| {
                problem.contains(words.split_whitespace().collect::<Vec<_>>().join(" ").as_str())
            }) =>
        {
            None
        }
        (None, got) => Some(format!("{name}\n  expected the error {words:?}\n  got      {got:?}")),
    }
}

#[test]
fn templates_render_as_the_reference_renders_them() {
    let golden = read_json(&repository().join("tests/golden/templates.json"));
    let rows = golden["rows"].as_array().expect("templates.json: rows");
    let mut differences = Vec::new();
    for row in rows {
        let name = row["name"].as_str().expect("a row has a name");
        if name == "tojson: an integer beyond 64 bits" {
            // JSON numbers are read as 64-bit integers or floats; a template cannot tell which it was.
            continue;
        }
        let template =
            golden["templates"][row["template"].as_str().expect("a template's name")].as_str().expect("a template");
        differences.extend(difference(name, row, &render(template, &input(row, "variables"))));
    }
    for expression in golden["expressions"].as_array().expect("templates.json: expressions") {
        let of = expression["of"].as_str().expect("the row it belongs to");
        let row = rows.iter().find(|row| row["name"] == of).unwrap_or_else(|| panic!("no row {of}"));
        let text = expression["text"].as_str().expect("an expression");
        differences.extend(difference(text, expression, &render(text, &input(row, "variables"))));
    }
    assert!(differences.is_empty(), "{} of the golden rows differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn the_chats_of_a_real_model_render_as_the_reference_rendered_them() {
    let path = repository().join("../shared/tokenizers/phi-3-mini/expected_chat.json");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let golden = read_json(&path);
    let template = golden["template"].as_str().expect("a template");
    let mut differences = Vec::new();
    for row in golden["rows"].as_array().expect("rows") {
        let mut input = input(row, "kwargs");
        for key in ["bos_token", "eos_token"] {
            input.variables.insert(key.to_owned(), row[key].clone());
        }
        let name = format!("{} (tools {}, prompt {})", row["name"], row["tools"], row["add_generation_prompt"]);
        differences.extend(difference(&name, row, &render(template, &input)));
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Whose fault a failure is decides which file a person looks at.
#[test]
fn a_message_without_text_is_to_blame_for_the_template_that_fails_on_it() {
    let template = "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}{% endfor %}";
    let other = "{{ 'a' + 1 }}";
    let cases = [
        (template, r#"[{"role":"user","content":"x"},{"content":"x"}]"#, Some("number 2 has no text as its role")),
        (template, r#"[{"role":"user"}]"#, Some("number 1 has no text as its content")),
        (template, r#"[{"role":"user","content":3}]"#, Some("number 1 has no text as its content")),
        (other, r#"[{"role":"user","content":"x"}]"#, None),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", r#"[{}]"#, None),
    ];
    for (template, messages, blamed) in cases {
        let parsed = ChatTemplate::parse(template, Path::new("chat_template.jinja")).expect("a template that parses");
        let input = ChatInput::new(serde_json::from_str(messages).expect("JSON"));
        let error = parsed.render(&input, None).expect_err(messages);
        match blamed {
            Some(words) => assert!(
                matches!(&error, Error::ChatRefused { problem, .. } if problem.contains(words)),
                "{template} {messages}: {error}"
            ),
            None => assert!(matches!(error, Error::ChatTemplate { .. }), "{template} {messages}: {error}"),
        }
    }
}
