//! The facts of every golden model fit its tensors.

use std::path::{Path, PathBuf};

use infer_runtime::QuantPlan;
use infer_runtime::load::{Checkpoint, Config, ModelFiles, PlanOptions, check_tensors, plan_memory};
use infer_runtime::model::arch::spec_from;
use infer_runtime::options::{KvType, WeightFormat};

const PLAN_OPTIONS: PlanOptions =
    PlanOptions { kv: KvType::F32, context: None, beyond_context: false, chunk: 512, available: None };

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
            let spec = spec_from(&Config::read(&files)?, &checkpoint)?;
            let quant_plan = QuantPlan::new(&spec, &checkpoint, WeightFormat::AsStored, &[])?;
            let plan = plan_memory(&spec, &checkpoint, &quant_plan, &PLAN_OPTIONS)?;
            Ok((check_tensors(&spec, &checkpoint)?, plan, checkpoint))
        });
        let (checked, plan, checkpoint) = checked.unwrap_or_else(|error| panic!("{error}"));
        // Of the tensors in use, vectors become f32, which at most doubles them.
        let unused: usize = checked.unused.iter().map(|name| checkpoint.tensor(name).unwrap().bytes.len()).sum();
        let used = checkpoint.total_bytes() - unused as u64;
        assert!((used..=2 * used).contains(&plan.weights), "{}: {used} bytes in use, {plan}", folder.display());
        // The only tensors that nothing needs are those that are stored to be ignored.
        let ignored = [".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"];
        let unknown: Vec<_> =
            checked.unused.iter().filter(|name| !ignored.iter().any(|ending| name.ends_with(ending))).collect();
        assert!(unknown.is_empty(), "{}: not used: {unknown:?}", folder.display());
    }
}
