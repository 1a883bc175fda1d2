//! The special tokens that a tokenizer's companion files name, and the tokens that they add, as the reference
//! library (transformers 5, `TokenizersBackend`) reads them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::TokenizerFiles;
use crate::fence::fenced;

/// The names under which the reference shows special tokens to a chat template.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What the companion files say.
pub(super) struct SpecialTokens {
    named: BTreeMap<&'static str, AddedToken>,
    /// Tokens with flags of their own, in the order in which the reference adds them.
    decoder: Vec<AddedToken>,
    /// Special tokens without a standard name.
    extra: Vec<AddedToken>,
    /// Defaults of the tokenizer's class, for names that no file mentions.
    class: &'static [(&'static str, &'static str)],
    /// Names that a file mentions, if only with null.
    mentioned: Vec<&'static str>,
}

/// Reads the companions; the error names the key.
pub(super) fn read(files: &TokenizerFiles<'_>) -> Result<SpecialTokens, String> {
    let empty = Map::new();
    let config = object(files.config, "tokenizer_config.json", &empty)?;
    let mut entries: Vec<(&str, &Value)> = config.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let mut decoder = BTreeMap::new();
    match config.get("added_tokens_decoder") {
        Some(Value::Object(tokens)) => {
            for (id, token) in tokens {
                let key = || format!("tokenizer_config.json: added_tokens_decoder.{id}");
                let id: u32 = id.parse().map_err(|_| format!("{} is not a token id", key()))?;
                let token = token_of(token, false).ok_or_else(|| format!("{} is not a token", key()))?;
                decoder.insert(id, token);
            }
        }
        Some(Value::Null) | None => {
            let map = object(files.special_tokens_map, "special_tokens_map.json", &empty)?;
            entries.extend(map.iter().map(|(key, value)| (key.as_str(), value)));
        }
        Some(_) => return Err("tokenizer_config.json: added_tokens_decoder is not an object".to_owned()),
    }
    let flags: BTreeMap<String, AddedToken> =
        decoder.values().map(|token| (token.content.clone(), token.clone())).collect();
    let flagged = |token: AddedToken| flags.get(&token.content).cloned().unwrap_or(token);

    let mut special = SpecialTokens {
        named: BTreeMap::new(),
        decoder: Vec::new(),
        extra: Vec::new(),
        class: class_defaults(config.get("tokenizer_class").and_then(Value::as_str)),
        mentioned: Vec::new(),
    };
    for (key, value) in entries {
        if let Some(name) = NAMES.into_iter().find(|name| *name == key) {
            special.mentioned.push(name);
            match token_of(value, true) {
                Some(token) => drop(special.named.insert(name, flagged(token))),
                None if value.is_null() => drop(special.named.remove(name)),
                None => return Err(format!("tokenizer_config.json: {key} is {value}, expected a token")),
            }
        } else if key == "additional_special_tokens" || key == "extra_special_tokens" {
            let tokens: Vec<&Value> = match value {
                Value::Array(tokens) => tokens.iter().collect(),
                Value::Object(tokens) => tokens.values().collect(),
                _ => Vec::new(),
            };
            special.extra.extend(tokens.into_iter().filter_map(|token| token_of(token, true)).map(flagged));
        } else if key.ends_with("_token") && (value.is_string() || value.is_object()) {
            // A name of the model's own, such as `image_token`.
            special.extra.extend(token_of(value, true).map(flagged));
        }
    }
    if decoder.is_empty()
        && let Some(added) = files.added_tokens
    {
        for (content, id) in object(Some(added), "added_tokens.json", &empty)? {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| format!("added_tokens.json: the id of {content:?} is not a number"))?;
            let is_special = special.named.values().chain(&special.extra).any(|token| token.content == *content);
            decoder.insert(id, AddedToken::from(content.as_str(), is_special));
        }
    }
    special.decoder = decoder.into_values().collect();
    Ok(special)
}

impl SpecialTokens {
    /// Adds to `core` what it lacks and returns the named tokens.
    pub(super) fn add_to(self, core: &mut tokenizers::Tokenizer) -> Result<BTreeMap<&'static str, String>, String> {
        let SpecialTokens { mut named, decoder, extra, class, mentioned } = self;
        for (name, content) in class {
            if !mentioned.contains(name) && core.token_to_id(content).is_some() {
                named.insert(name, AddedToken::from(*content, true));
            }
        }
        let present = core.get_added_vocabulary().get_added_tokens_decoder();
        let mut tokens: Vec<AddedToken> =
            decoder.into_iter().filter(|token| !present.values().any(|known| known == token)).collect();
        for token in named.values().chain(&extra) {
            let known = present.values().chain(&tokens).any(|known| known.content == token.content);
            if !known && !token.content.is_empty() {
                tokens.push(AddedToken { special: true, ..token.clone() });
            }
        }
        if !tokens.is_empty() {
            fenced(|| core.add_tokens(tokens).map(|_| ()).map_err(|error| error.to_string()))
                .unwrap_or_else(Err)
                .map_err(|problem| format!("the added tokens of tokenizer_config.json: {problem}"))?;
        }
        Ok(named.into_iter().map(|(name, token)| (name, token.content)).collect())
    }
}

fn object<'a>(
    json: Option<&'a Value>,
    name: &str,
    empty: &'a Map<String, Value>,
) -> Result<&'a Map<String, Value>, String> {
    match json {
        None => Ok(empty),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(format!("{name}: expected a JSON object")),
    }
}

/// A token in either writing: its text, or an object with `content` and flags.
fn token_of(value: &Value, special: bool) -> Option<AddedToken> {
    match value {
        Value::String(content) => Some(AddedToken::from(content.as_str(), special)),
        Value::Object(fields) => {
            let flag = |key: &str| fields.get(key).and_then(Value::as_bool);
            let content = fields.get("content")?.as_str()?;
            let mut token = AddedToken::from(content, flag("special").unwrap_or(special));
            token.single_word = flag("single_word").unwrap_or(false);
            token.lstrip = flag("lstrip").unwrap_or(false);
            token.rstrip = flag("rstrip").unwrap_or(false);
            token.normalized = flag("normalized").unwrap_or(token.normalized);
            Some(token)
        }
        _ => None,
    }
}

/// The names that the reference's tokenizer classes give themselves when no file does.
fn class_defaults(class: Option<&str>) -> &'static [(&'static str, &'static str)] {
    match class.map(|class| class.strip_suffix("Fast").unwrap_or(class)) {
        Some("LlamaTokenizer" | "CodeLlamaTokenizer") => {
            &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]
        }
        Some("GPT2Tokenizer") => {
            &[("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>")]
        }
        Some("GemmaTokenizer") => {
            &[("bos_token", "<bos>"), ("eos_token", "<eos>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")]
        }
        Some("Qwen2Tokenizer") => {
            &[("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>")]
        }
        _ => &[],
    }
}
