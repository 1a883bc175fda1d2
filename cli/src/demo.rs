//! The model inside the program: a Llama of 5.6 million parameters that was trained on fairy tales.

use std::borrow::Cow;

/// What a user is told who did not name a model.
pub const NOTICE: &str = "A tiny model that tells fairy tales; for a real one: infer --model PATH";

/// Its files, as they would lie in a folder.
pub fn files() -> Vec<(String, Cow<'static, [u8]>)> {
    const FILES: [(&str, &[u8]); 5] = [
        ("config.json", include_bytes!("../demo/config.json")),
        ("generation_config.json", include_bytes!("../demo/generation_config.json")),
        ("model.safetensors", include_bytes!("../demo/model.safetensors")),
        ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
        ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
    ];
    FILES.into_iter().map(|(name, bytes)| (name.to_owned(), Cow::Borrowed(bytes))).collect()
}
