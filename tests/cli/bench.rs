//! `infer bench`: what it prints, not how fast it is.

use super::*;

/// Few tokens, once.
const SHORT: [&str; 9] = ["bench", "-p", "3", "-n", "2", "-r", "1", "-t", "1"];

#[test]
fn the_result_for_programs_has_every_key() {
    let results = json(&[&SHORT[..], &["--json", "--q8", "-b", "2,1", "-d", "0,5", "--profile"]].concat(), b"");
    let results = results.as_array().expect("an array");
    let found: Vec<(u64, u64, &str)> = results
        .iter()
        .map(|result| {
            let number = |key: &str| result[key].as_u64().unwrap_or_else(|| panic!("{key} in {result}"));
            (number("batch"), number("depth"), result["phase"].as_str().expect("a phase"))
        })
        .collect();
    let of_batch = |batch| [(batch, 0, "prefill"), (batch, 0, "decode"), (batch, 5, "prefill"), (batch, 5, "decode")];
    assert_eq!(found, [of_batch(1), of_batch(2)].concat(), "batch 1 comes first");
    for result in results {
        let text = |key: &str| result[key].as_str().unwrap_or_else(|| panic!("{key} in {result}"));
        assert_eq!((text("model"), text("format"), text("kv")), ("demo", "int8", "bf16"));
        assert!(["memory", "compute"].contains(&text("limit")) && !text("isa").is_empty(), "{result}");
        assert_eq!(result["threads"], 1);
        assert_eq!(result["tokens"], if text("phase") == "prefill" { 3 } else { 2 });
        for key in ["tok_s", "tok_s_min", "tok_s_max", "gb_s", "gops", "limit_value", "share"] {
            assert!(result[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {result}");
        }
        let bits = result["bits_per_weight"].as_f64().expect("a number");
        assert!((8.0..9.0).contains(&bits), "{bits} bits in {result}");
        assert!(result["profile_ms"]["attend"].as_f64().is_some_and(|ms| ms > 0.0), "{result}");
    }
}

#[test]
fn tables_have_a_line_for_each_measurement() {
    let args = ["bench", "--shape", "tinyllama-1.1b/1", "--q8", "-p", "0", "-n", "1", "-r", "1", "-t", "1,2"];
    for (style, begin, count) in [(&["--markdown"][..], "| ", 3), (&[][..], "      ", 2)] {
        let run = run(&[&args[..], style].concat(), b"");
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        assert!(run.stdout.contains("tinyllama-1.1b/1, int8 weights of 8.5"), "{}", run.stdout);
        let lines = run.stdout.lines().filter(|line| line.starts_with(begin)).count();
        assert_eq!(lines, count, "{}", run.stdout);
        assert_eq!(run.stdout.matches("decode").count(), 2, "{}", run.stdout);
    }
}

#[test]
fn weights_of_a_shape_are_made_once() {
    let cache = tempfile::tempdir().expect("a folder");
    let bench = |more: &[&str]| {
        let args =
            ["bench", "--shape", "tinyllama-1.1b/1", "--q8", "-p", "1", "-n", "0", "-r", "1", "-t", "1", "--json"];
        let mut command = infer(&[&args[..], more].concat());
        command.env("XDG_CACHE_HOME", cache.path());
        let run = run_command(command, b"");
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run.stderr
    };
    let said = bench(&["--no-cache"]);
    assert!(said.contains("quantized") && !said.contains("kept"), "{said}");
    let said = bench(&[]);
    assert!(said.contains("kept in") && said.contains("tinyllama-1.1b_1-q8-"), "{said}");
    assert_eq!(bench(&[]), "", "the second run makes them again");
}
