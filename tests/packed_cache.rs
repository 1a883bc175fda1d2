//! Plans of quantization, and packed models that are kept: the same bits as without a cache, whatever lies there.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use infer_kernels::quant::{LAYOUT_VERSION, int4, int8};
use infer_runtime::{Error, LoadOptions, Model, Notice, Outline, Override, PackedCache, WeightFormat};
use support::{exact, root};

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/models").join(name)
}

fn overrides(rules: &[&str]) -> Vec<Override> {
    rules.iter().map(|rule| Override::parse(rule).expect("an override")).collect()
}

/// Logits of a few tokens, as bits.
fn bits(model: &Model) -> Vec<u32> {
    let logits = model.session().forward(&[1, 2, 3, 4, 5]).expect("a forward pass");
    logits.values().iter().map(|value| value.to_bits()).collect()
}

/// Loads with a cache in `folder`; the model's logits, and what was noticed.
fn load(model: &Path, folder: &Path, options: &LoadOptions) -> (Vec<u32>, Vec<Notice>) {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&notices);
    let options = LoadOptions {
        cache: Some(folder.to_owned()),
        notices: Some(Arc::new(move |notice| heard.lock().expect("the notices").push(notice))),
        ..options.clone()
    };
    let model = Model::load(model, options).unwrap_or_else(|error| panic!("{}: {error}", model.display()));
    let notices = notices.lock().expect("the notices").clone();
    (bits(&model), notices)
}

/// The kind of each notice, as letters: Waiting, Rebuilding, Not cached, Quantized and kept, quantized and Forgotten.
fn kinds(notices: &[Notice]) -> String {
    let kind = |notice: &Notice| match notice {
        Notice::Waiting => 'W',
        Notice::Rebuilding { .. } => 'R',
        Notice::NotCached { .. } => 'N',
        Notice::Quantized { path: Some(_), .. } => 'Q',
        Notice::Quantized { path: None, .. } => 'F',
        _ => '?',
    };
    notices.iter().map(kind).collect()
}

/// The only packed file in a folder.
fn packed_file(folder: &Path) -> PathBuf {
    let entries = PackedCache::new(folder).entries().expect("a folder");
    let [entry] = entries.as_slice() else { panic!("expected one packed model, found {entries:?}") };
    folder.join(&entry.name)
}

/// A model that is packed and kept, and the logits that it must give.
struct Kept {
    model: PathBuf,
    options: LoadOptions,
    expected: Vec<u32>,
    cache: tempfile::TempDir,
    path: PathBuf,
    good: Vec<u8>,
}

impl Kept {
    fn new() -> Kept {
        let model = golden("llama-defaults");
        let options = LoadOptions { weights: WeightFormat::Int4, ..exact() };
        let expected = bits(&Model::load(&model, options.clone()).expect("a model"));
        let cache = tempfile::tempdir().expect("a folder");
        load(&model, cache.path(), &options);
        let path = packed_file(cache.path());
        let good = fs::read(&path).expect("the packed file");
        Kept { model, options, expected, cache, path, good }
    }
}

#[test]
fn packed_models_give_the_same_bits_as_quantizing_again() {
    let names = fs::read_dir(root().join("tests/golden/models")).expect("the golden models");
    let names = names.map(|entry| entry.expect("an entry").path()).filter(|path| path.join("config.json").exists());
    for folder in names {
        for weights in [WeightFormat::Int8, WeightFormat::Int4] {
            let cache = tempfile::tempdir().expect("a folder");
            let options = LoadOptions { weights, ..exact() };
            let expected = bits(&Model::load(&folder, options.clone()).expect("a model"));
            let (built, notices) = load(&folder, cache.path(), &options);
            assert_eq!(kinds(&notices), "Q", "{}: {notices:?}", folder.display());
            assert!(built == expected, "{}: built as {weights:?}, logits differ", folder.display());
            let (mapped, notices) = load(&folder, cache.path(), &options);
            assert_eq!(kinds(&notices), "", "{}: {notices:?}", folder.display());
            assert!(mapped == expected, "{}: mapped as {weights:?}, logits differ", folder.display());
        }
    }
}

#[test]
fn packed_files_are_valid_safetensors_files_with_aligned_matrices() {
    let cache = tempfile::tempdir().expect("a folder");
    let options = LoadOptions { weights: WeightFormat::Int4, ..exact() };
    load(&golden("phi3-window"), cache.path(), &options);
    let file = fs::read(packed_file(cache.path())).expect("the packed file");
    let (header_len, header) = safetensors::SafeTensors::read_metadata(&file).expect("a safetensors file");
    assert!(header.tensors().len() > 10, "{:?}", header.tensors().keys());
    for (name, info) in header.tensors() {
        let start = 8 + header_len + info.data_offsets.0;
        let alignment = if info.dtype == safetensors::Dtype::U8 { 64 } else { info.dtype.bitsize() / 8 };
        assert!(start.is_multiple_of(alignment), "{name} begins at {start}");
    }
    let metadata = header.metadata().as_ref().expect("metadata");
    assert_eq!(metadata.get("format").map(String::as_str), Some("infer-packed"));
    assert_eq!(metadata.get("plan").map(String::as_str), Some("q4"));
}

#[test]
fn files_that_are_not_as_they_would_be_written_now_are_made_anew() {
    let Kept { model, options, expected, cache, path, good } = Kept::new();
    let header_len = good.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
    type Damage = fn(Vec<u8>, usize) -> Vec<u8>;
    let cases: [(&str, Damage); 9] = [
        ("empty", |_, _| Vec::new()),
        ("seven bytes", |good, _| good[..7].to_vec()),
        ("half of the header", |good, header| good[..header / 2].to_vec()),
        ("the header alone", |good, header| good[..8 + header].to_vec()),
        ("one byte short", |good, _| good[..good.len() - 1].to_vec()),
        ("one byte long", |good, _| [good.as_slice(), &[0]].concat()),
        ("a huge header", |good, _| [&u64::MAX.to_le_bytes(), &good[8..]].concat()),
        ("another digit in the header", |mut good, header| {
            let digit = good[8..8 + header].iter().position(u8::is_ascii_digit).expect("a digit") + 8;
            good[digit] ^= 1;
            good
        }),
        ("not safetensors", |_, _| b"<html>".repeat(1000)),
    ];
    for (what, damage) in cases {
        fs::write(&path, damage(good.clone(), header_len)).expect("a damaged file");
        let (found, notices) = load(&model, cache.path(), &options);
        assert_eq!(kinds(&notices), "RQ", "{what}: {notices:?}");
        assert!(found == expected, "{what}: logits differ");
        assert_eq!(fs::read(&path).expect("the packed file"), good, "{what}");
    }
}

/// A process that is killed leaves a lock that nobody has, and a part of the temporary file, of any length.
#[test]
fn whatever_a_killed_process_leaves_is_made_anew_and_removed() {
    let Kept { model, options, expected, cache, path, good } = Kept::new();
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
    let temporary = cache.path().join(format!(".{name}.tmp"));
    for part in 0..=20 {
        fs::remove_file(&path).expect("the packed file");
        let length = good.len() * part / 20;
        fs::write(&temporary, &good[..length]).expect("an unfinished file");
        let (found, notices) = load(&model, cache.path(), &options);
        assert_eq!(kinds(&notices), "Q", "{length} bytes: {notices:?}");
        assert!(found == expected, "{length} bytes: logits differ");
        assert!(!temporary.exists(), "{length} bytes: the unfinished file is still there");
        assert!(fs::read(&path).expect("the packed file") == good, "{length} bytes: another file");
    }
}

#[test]
fn a_changed_model_is_packed_again_under_the_same_name() {
    let model = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("llama-defaults").join(name), model.path().join(name)).expect("a copy");
    }
    let cache = tempfile::tempdir().expect("a folder");
    let options = LoadOptions { weights: WeightFormat::Int8, ..exact() };
    let (before, _) = load(model.path(), cache.path(), &options);
    let weights = model.path().join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let middle = bytes.len() - 1001;
    bytes.get_mut(middle..middle + 1000).expect("bytes").fill(0);
    fs::write(&weights, bytes).expect("other weights");
    // A clock of whole seconds would not tell the two apart.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    fs::File::options().write(true).open(&weights).and_then(|file| file.set_modified(later)).expect("another time");
    let (after, notices) = load(model.path(), cache.path(), &options);
    assert_eq!(kinds(&notices), "RQ", "{notices:?}");
    assert!(before != after, "the old weights are still in use");
    packed_file(cache.path());
}

#[test]
fn plans_and_models_have_files_of_their_own() {
    let cache = tempfile::tempdir().expect("a folder");
    let int4 = LoadOptions { weights: WeightFormat::Int4, ..exact() };
    let mixed = LoadOptions { overrides: overrides(&["*.down_proj=q8"]), ..int4.clone() };
    let int8 = LoadOptions { weights: WeightFormat::Int8, ..exact() };
    for options in [&int4, &mixed, &int8] {
        for model in ["llama-defaults", "mistral-window"] {
            assert_eq!(kinds(&load(&golden(model), cache.path(), options).1), "Q", "{model}");
        }
    }
    assert_eq!(PackedCache::new(cache.path()).entries().expect("a folder").len(), 6);
    let (found, _) = load(&golden("llama-defaults"), cache.path(), &mixed);
    assert!(
        found != bits(&Model::load(golden("llama-defaults"), int4).expect("a model")),
        "the override has no effect"
    );
}

#[test]
fn a_cache_that_cannot_be_written_is_one_notice() {
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("file");
    fs::write(&file, "").expect("a file");
    let options = LoadOptions { weights: WeightFormat::Int4, ..exact() };
    let expected = bits(&Model::load(golden("llama-defaults"), options.clone()).expect("a model"));
    for folder in [file.as_path(), &file.join("inside"), Path::new("/proc/infer")] {
        let (found, notices) = load(&golden("llama-defaults"), folder, &options);
        assert_eq!(kinds(&notices), "NF", "{}: {notices:?}", folder.display());
        assert!(found == expected, "{}: logits differ", folder.display());
    }
}

#[test]
fn two_that_want_the_same_model_make_it_once() {
    let cache = tempfile::tempdir().expect("a folder");
    let options = LoadOptions { weights: WeightFormat::Int4, ..exact() };
    let runs: Vec<_> = std::thread::scope(|scope| {
        let load = || load(&golden("mixtral-top2"), cache.path(), &options);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a model")).collect()
    });
    let built = runs.iter().filter(|(_, notices)| kinds(notices).contains('Q')).count();
    assert_eq!(built, 1, "{runs:?}", runs = runs.iter().map(|(_, notices)| kinds(notices)).collect::<Vec<_>>());
    assert!(runs.windows(2).all(|pair| pair[0].0 == pair[1].0), "logits differ");
}

#[test]
fn models_in_memory_are_not_kept() {
    let cache = tempfile::tempdir().expect("a folder");
    let files = ["config.json", "model.safetensors"].map(|name| {
        let bytes = fs::read(golden("llama-defaults").join(name)).expect("a file");
        (name.to_owned(), bytes.into())
    });
    let cache_folder = cache.path().join("none");
    let options = LoadOptions { weights: WeightFormat::Int4, cache: Some(cache_folder.clone()), ..exact() };
    Model::from_bytes(files.into(), options).expect("a model");
    assert!(!cache_folder.exists());
}

#[test]
fn entries_say_what_they_are_and_can_be_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = PackedCache::new(folder.path());
    load(&golden("llama-defaults"), folder.path(), &LoadOptions { weights: WeightFormat::Int4, ..exact() });
    fs::write(folder.path().join(".gone.safetensors.tmp"), "1234").expect("an unfinished file");
    fs::write(folder.path().join(".gone.safetensors.lock"), "").expect("its lock");
    let entries = cache.entries().expect("a folder");
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert!(entry.name.starts_with("llama-defaults-q4-"), "{entry:?}");
    assert_eq!(entry.plan.as_deref(), Some("q4"));
    assert!(
        entry.model.as_deref().is_some_and(|model| model.ends_with("llama-defaults/model.safetensors")),
        "{entry:?}"
    );
    assert_eq!(entry.bytes, fs::metadata(folder.path().join(&entry.name)).expect("the file").len());
    assert_eq!(cache.remove("../llama").expect("a folder"), None);
    assert_eq!(cache.remove(&entry.name).expect("a removed file"), Some(entry.bytes));
    assert_eq!(cache.remove(&entry.name).expect("a folder"), None);
    assert_eq!(cache.remove_unfinished().expect("a folder"), 4);
    assert!(PackedCache::new(folder.path().join("none")).entries().expect("no folder").is_empty());
}

#[test]
fn plans_spend_bits_where_errors_reach_the_logits() {
    let plan = |model: &str, weights, rules: &[&str]| {
        let options = LoadOptions { weights, overrides: overrides(rules), ..exact() };
        let outline = Outline::open(golden(model), options).unwrap_or_else(|error| panic!("{model}: {error}"));
        let classes = outline.quant_plan().classes();
        let classes: Vec<_> = classes.iter().map(|class| format!("{} {}", class.name, class.format.name())).collect();
        classes.join("; ")
    };
    let rest = |format: &str| format!("query, key, output {format}; value {format}; gate, up {format}; down {format}");
    let cases = [
        ("llama-defaults", WeightFormat::AsStored, &[][..], format!("embedding stored; {}; head stored; norms, biases stored", rest("stored"))),
        ("llama-defaults", WeightFormat::Int8, &[], format!("embedding q8; {}; head q8; norms, biases stored", rest("q8"))),
        ("llama-defaults", WeightFormat::Int4, &[], format!("embedding q4; {}; head q8; norms, biases stored", rest("q4"))),
        (
            "mixtral-top2",
            WeightFormat::Int4,
            &[],
            "embedding q4; query, key, output q4; value q4; router stored; gate, up q4; down q4; head q8; norms, biases stored".to_owned(),
        ),
        (
            "llama-defaults",
            WeightFormat::Int4,
            &["*=q8", "model.layers.*.mlp.down_proj=stored", "lm_head.weight=q4"],
            "embedding q8; query, key, output q8; value q8; gate, up q8; down stored; head q4; norms, biases stored".to_owned(),
        ),
        (
            "llama-defaults",
            WeightFormat::AsStored,
            &["model.layers.0.*=q8"],
            "embedding stored; query, key, output q8; query, key, output stored; value q8; value stored; gate, up q8; \
             gate, up stored; down q8; down stored; head stored; norms, biases stored"
                .to_owned(),
        ),
    ];
    for (model, weights, rules, expected) in cases {
        assert_eq!(plan(model, weights, rules), expected, "{model} as {weights:?} with {rules:?}");
    }
}

#[test]
fn overrides_that_describe_nothing_name_what_is_near() {
    for (rule, near) in [
        ("model.layers.*.mlp.down=q8", "model.layers.*.mlp.down_proj"),
        ("lm_heat=q8", "lm_head"),
        ("model.norm=q8", "model.layers.*"),
    ] {
        let options = LoadOptions { overrides: overrides(&[rule]), ..exact() };
        let found = Outline::open(golden("llama-defaults"), options).err().expect("an error");
        assert!(matches!(found, Error::InvalidOption { option: "override", .. }), "{rule}: {found}");
        assert!(found.to_string().contains(near), "{rule}: {found}");
    }
    for text in ["", "=q8", "a", "a=", "a=q5", "a=Q8", "q8"] {
        let found = Override::parse(text).expect_err(text);
        assert!(found.to_string().contains("q8, q4 or stored"), "{text:?}: {found}");
    }
}

/// Files of packed weights name their layout's version; one that changed without it would be read as noise.
#[test]
fn packed_bytes_change_with_the_version_of_their_layout_alone() {
    const RECORDED: (u32, [u64; 2]) = (2, [4_890_687_125_723_153_583, 18_314_849_517_198_936_222]);
    let weights: Vec<f32> = (0..40 * 150).map(|i| ((i * i % 1009) as f32 - 504.0) * 0.001).collect();
    let checksum = |packed: &[u8]| {
        packed.iter().fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    };
    let packed = |bytes: Option<usize>, quantize: fn(&[f32], usize, &mut [u8])| {
        let mut packed = vec![0; bytes.expect("a size")];
        quantize(&weights, 150, &mut packed);
        checksum(&packed)
    };
    let found = [
        packed(int8::packed_bytes(40, 150), int8::quantize_rows),
        packed(int4::packed_bytes(40, 150), int4::quantize_rows),
    ];
    assert_eq!(
        (LAYOUT_VERSION, found),
        RECORDED,
        "raise LAYOUT_VERSION when packed bytes change, then record the left side here"
    );
}
