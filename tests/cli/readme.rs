//! What the README says of the program.

use super::*;

fn readme() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).expect("README.md")
}

#[test]
fn every_architecture_is_in_the_table() {
    let readme = readme();
    for architecture in infer_runtime::model::arch::supported_architectures() {
        assert!(readme.contains(&format!("`{architecture}`")), "README.md does not name {architecture}");
    }
}

#[test]
fn every_flag_in_the_readme_exists() {
    let commands = ["", "show", "logits", "tokenize", "bench", "quantize"];
    let help = commands.map(|command| {
        let args = [command, "--help"];
        run(if command.is_empty() { &args[1..] } else { &args }, b"").stdout
    });
    let help = help.concat();
    let readme = readme();
    for line in readme.lines().filter(|line| line.contains("infer ") && !line.contains("cargo")) {
        let (command, _) = line.split_once(" #").unwrap_or((line, ""));
        let words = command.split_whitespace().map(|word| word.trim_end_matches(['`', ',', '.']));
        for word in words.filter(|word| word.starts_with("--")) {
            assert!(help.contains(word), "no command has {word}, which README.md uses in {line:?}");
        }
    }
}
