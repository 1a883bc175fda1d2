//! A folder with a packed model and everything else that it needs: what `--model` opens without quantizing.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};
use crate::load::{ModelFiles, default_threads};
use crate::model::load::{quantizing_pool, reporting};
use crate::model::outline::Outline;
use crate::options::WeightFormat;
use crate::quantize::packed_file::PackedFile;

/// Files of a model that are copied if it has them.
const COMPANIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
];
/// A folder whose files are copied.
const TEMPLATES: &str = "additional_chat_templates";
/// Larger files are none of these.
const LARGEST_COMPANION: u64 = 256 << 20;

impl Outline {
    /// Quantizes by the plan and writes packed weights, config, tokenizer and templates into `folder`, which is there.
    /// Everything is on the disk when it returns. Gives the size of the weights' file.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if there is nothing to quantize or the weights are packed already; [`Error::Io`] if the
    /// folder cannot be written; what is wrong with the model's files.
    pub fn write_packed(&self, folder: &Path) -> Result<u64> {
        let refuse = |option, expected: &str, found: &str| {
            Err(Error::InvalidOption { option, expected: expected.to_owned(), found: found.to_owned() })
        };
        let plan = self.quant_plan();
        if self.checkpoint().packed().is_some() {
            return refuse("model", "a model that is not packed yet", plan.summary());
        }
        if !plan.quantizes() {
            return refuse("weights", "a format to quantize to", WeightFormat::AsStored.name());
        }
        for name in COMPANIONS {
            copy(&self.files, name, folder)?;
        }
        let templates = self.files.names(TEMPLATES)?;
        if !templates.is_empty() {
            let subfolder = folder.join(TEMPLATES);
            fs::create_dir_all(&subfolder).map_err(|error| Error::io(&subfolder, error))?;
        }
        for name in templates.iter().filter(|name| name.ends_with(".jinja")) {
            copy(&self.files, &format!("{TEMPLATES}/{name}"), folder)?;
        }
        let path = folder.join("model.safetensors");
        let packed = PackedFile::new(self.spec(), self.checkpoint(), plan, None)?;
        let pool = quantizing_pool(self.options.threads.unwrap_or_else(default_threads))?;
        let mut file = File::create_new(&path).map_err(|error| Error::io(&path, error))?;
        reporting(&self.options, self.checkpoint().total_bytes(), |progress| {
            packed.write(&mut file, &path, &pool, progress)?;
            file.sync_all().map_err(|error| Error::io(&path, error))
        })?;
        Ok(packed.len())
    }
}

/// Copies a file of the model, if there is one of this name.
fn copy(files: &ModelFiles, name: &str, folder: &Path) -> Result<()> {
    let Some(file) = files.read(name, LARGEST_COMPANION)? else { return Ok(()) };
    let path = folder.join(name);
    let written = File::create_new(&path).and_then(|mut copy| {
        copy.write_all(&file.bytes)?;
        copy.sync_all()
    });
    written.map_err(|error| Error::io(&path, error))
}
