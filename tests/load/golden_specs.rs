//! The facts of every golden model fit its tensors.

use std::path::{Path, PathBuf};

use infer_runtime::load::{Checkpoint, Config, ModelFiles, check_tensors};
use infer_runtime::model::arch::spec_from;

fn folders(of: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(of) else { return Vec::new() };
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|folder| folder.join("config.json").exists() && !folder.join("config.json").is_dir());
    folders.sort();
    folders
}

#[test]
fn every_golden_model_has_the_tensors_that_its_config_asks_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let golden = folders(&root.join("tests/golden/models"));
    assert!(golden.len() >= 50, "found only {} golden models", golden.len());
    // The trained models beside the project, where they are there.
    let trained = folders(&root.join("../shared/models"));
    for folder in golden.iter().chain(&trained) {
        let checked = ModelFiles::open(folder).and_then(|files| {
            let checkpoint = Checkpoint::open(&files)?;
            check_tensors(&spec_from(&Config::read(&files)?, &checkpoint)?, &checkpoint)
        });
        let checked = checked.unwrap_or_else(|error| panic!("{error}"));
        // The only tensors that nothing needs are those that are stored to be ignored.
        let ignored = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
        let unknown: Vec<_> =
            checked.unused.iter().filter(|name| !ignored.iter().any(|ending| name.ends_with(ending))).collect();
        assert!(unknown.is_empty(), "{}: not used: {unknown:?}", folder.display());
    }
}
