//! `infer tokenize`: bytes in, ids out, and back.

use super::*;

#[test]
fn text_survives_encoding_and_decoding_byte_for_byte() {
    for text in ["", " ", "\n", "Once upon a time", "a\0b", " two  spaces \r\n", "é€🙂", "-p", "<|user|>hi<|end|>"]
    {
        let encoded = json(&["tokenize", "--json"], text.as_bytes());
        if !text.contains('\0') {
            // No argument of a program can have a NUL.
            assert_eq!(encoded, json(&["tokenize", "--json", "--text", text], b"ignored"), "{text:?}");
        }
        let ids: Vec<String> = encoded["ids"].as_array().expect("a list").iter().map(|id| id.to_string()).collect();
        assert_eq!(ids[0], "0", "{text:?}: the begin token comes first");
        let decoded = json(&["tokenize", "--json", "--ids", &ids[1..].join(",")], b"");
        assert_eq!(decoded, serde_json::json!({ "text": text }), "{text:?}");
    }
}

#[test]
fn special_tokens_are_added_recognised_and_left_out_as_asked() {
    let ids = |args: &[&str]| json(&[&["tokenize", "--json"], args].concat(), b"")["ids"].clone();
    assert_eq!(ids(&["--text", ""]), serde_json::json!([0]));
    assert_eq!(ids(&["--text", "", "--no-special"]), serde_json::json!([]));
    assert_eq!(ids(&["--text", "<|user|><|end|>", "--no-special"]), serde_json::json!([2, 1]));
    let text = |args: &[&str]| json(&[&["tokenize", "--json"], args].concat(), b"")["text"].clone();
    assert_eq!(text(&["--ids="]), "");
    assert_eq!(text(&["--ids", "2,1"]), "<|user|><|end|>");
    assert_eq!(text(&["--ids", "2,1", "--skip-special"]), "");
    assert_fails(&["tokenize", "--ids", "1,4096"], b"", 2, &["4096", "vocabulary"]);
}

#[test]
fn a_chat_file_is_rendered_with_the_template() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("chat.json");
    let chat = |content: &str, extra: &[&str]| {
        std::fs::write(&path, content).expect("a file");
        json(&[&["tokenize", "--json", "--chat", text(&path)], extra].concat(), b"")
    };
    let messages = r#"{"messages":[{"role":"user","content":"Hi <|end|>"}]}"#;
    let rendered = chat(messages, &[]);
    assert_eq!(rendered["text"], "<|begin|><|user|>Hi <|end|><|end|><|assistant|>");
    let ids = rendered["ids"].as_array().expect("a list");
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 1, "an end token spelt by the user is plain words: {ids:?}");
    assert_eq!(chat(messages, &["--no-generation-prompt"])["text"], "<|begin|><|user|>Hi <|end|><|end|>");
    let template = folder.path().join("own.jinja");
    std::fs::write(&template, "{{ mood }}{% if tools %}{{ tools | length }}{% endif %}").expect("a file");
    let own = ["--chat-template", text(&template)];
    assert_eq!(chat(r#"{"messages":[{}],"mood":"gay","tools":[{"name":"f"}]}"#, &own)["text"], "gay1");
    assert_eq!(chat(r#"{"messages":[{}],"mood":"sad","tools":null}"#, &own)["text"], "sad");
}

#[test]
fn a_chat_that_cannot_be_rendered_is_wrong_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("chat.json");
    for (content, words) in [
        ("", &["chat.json", "JSON"][..]),
        ("[]", &["messages"]),
        (r#"{"prompt":"hi"}"#, &["messages"]),
        (r#"{"messages":"hi"}"#, &["messages", "list"]),
        (r#"{"messages":[1]}"#, &["message 0"]),
        (r#"{"messages":[]}"#, &["message"]),
        (r#"{"messages":[{"role":"user"}],"tools":7}"#, &["tools"]),
    ] {
        std::fs::write(&path, content).expect("a file");
        assert_fails(&["tokenize", "--chat", text(&path)], b"", 2, words);
    }
    std::fs::write(&path, r#"{"messages":[{"role":"user","content":"Hi"}]}"#).expect("a file");
    let template = folder.path().join("own.jinja");
    std::fs::write(&template, "{{ raise_exception('say something first') }}").expect("a file");
    let args = ["tokenize", "--chat", text(&path), "--chat-template", text(&template)];
    assert_fails(&args, b"", 2, &["say something first"]);
    std::fs::write(&template, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").expect("a file");
    assert_fails(&args, b"", 3, &["own.jinja"]);
}

#[test]
fn neither_weights_nor_config_are_needed() {
    let folder = demo_files(&["tokenizer.json"]);
    let encoded = json(&["tokenize", "--json", "--model", text(folder.path()), "--text", "tale"], b"");
    assert_eq!(encoded, json(&["tokenize", "--json", "--text", "tale"], b""));
}

#[test]
fn without_json_the_output_is_for_people() {
    let encoded = run(&["tokenize", "--text", "tale"], b"");
    assert_eq!(encoded.code, Some(0), "{}", encoded.stderr);
    assert!(encoded.stdout.starts_with('0'), "{:?}", encoded.stdout);
    let decoded = run(&["tokenize", "--ids", "2"], b"");
    assert_eq!(decoded.stdout, "<|user|>\n");
}
