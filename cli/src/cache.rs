//! `infer cache`: the quantized models that are kept.

use anyhow::{Result, anyhow};
use infer_runtime::PackedCache;
use serde_json::{Value, json};

use crate::args::CacheCommand;
use crate::exit::wrong_use;
use crate::output;
use crate::terminal::{self, bytes, escape_controls};

/// Lists, removes, or says where they are.
pub fn run(command: &CacheCommand) -> Result<()> {
    let folder = PackedCache::default_folder();
    let folder = folder.ok_or_else(|| anyhow!("no cache: neither XDG_CACHE_HOME nor HOME is an absolute path"))?;
    let cache = PackedCache::new(folder);
    match command {
        CacheCommand::Path => output::print(&format!("{}\n", cache.folder().display())),
        CacheCommand::Ls { json } => list(&cache, *json),
        CacheCommand::Rm { names, all } => remove(&cache, names, *all),
    }
}

fn list(cache: &PackedCache, json: bool) -> Result<()> {
    let entries = cache.entries()?;
    if json {
        let object = |entry: &infer_runtime::CacheEntry| json!({ "name": entry.name, "bytes": entry.bytes, "plan": entry.plan, "model": entry.model });
        return output::print(&format!("{}\n", entries.iter().map(object).collect::<Value>()));
    }
    let mut text = String::new();
    for entry in &entries {
        let model = escape_controls(entry.model.as_deref().unwrap_or("damaged"));
        text.push_str(&format!("{:>9}  {}  {model}\n", bytes(entry.bytes), escape_controls(&entry.name)));
    }
    let total = entries.iter().map(|entry| entry.bytes).sum();
    text.push_str(&format!("{:>9}  in {}\n", bytes(total), cache.folder().display()));
    output::print(&text)
}

fn remove(cache: &PackedCache, names: &[String], all: bool) -> Result<()> {
    let entries = cache.entries()?;
    if let Some(unknown) = names.iter().find(|name| !entries.iter().any(|entry| entry.name == **name)) {
        return Err(wrong_use(format!("{unknown:?}: expected a name that `infer cache ls` lists")));
    }
    let mut removed = cache.remove_unfinished()?;
    for entry in entries.iter().filter(|entry| all || names.contains(&entry.name)) {
        removed += cache.remove(&entry.name)?.unwrap_or(0);
    }
    terminal::note(&format!("infer: removed {}", bytes(removed)));
    Ok(())
}
