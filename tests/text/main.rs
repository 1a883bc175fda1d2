//! Tokenizers, streamed text and chat templates of infer-runtime.

mod chat_templates;
mod chat_tokens;
mod small_tokenizers;
mod text_streams;
mod tokenizers;
