//! Sessions saved to a file and brought back.

mod support;

use infer_runtime::{Error, KvType, LoadOptions, Model, WeightFormat};
use support::{answer, bits, demo, difference, exact, exact_demo, greedy, root, session_with};

#[test]
fn a_saved_session_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let windowed = root().join("tests/golden/models/mistral-window");
    for (name, model_folder) in [("demo", demo()), ("mistral-window", windowed)] {
        for kv in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            let model = Model::load(&model_folder, LoadOptions { kv: Some(kv), ..exact() }).expect("the model loads");
            let path = folder.path().join(format!("{name}.cache"));
            let prompt: Vec<u32> = (0..45).map(|index| 7 + index * 13 % 90).collect();
            let mut session = model.session();
            session.prefill(&prompt).expect("prefill");
            session.save(&path).expect("saving");
            // With a token that was drawn and not run yet.
            answer(&mut session, greedy(1));
            session.save(&path).expect("saving again");
            let expected = answer(&mut session, greedy(20));
            let mut restored = model.session();
            restored.prefill(&[5, 6]).expect("prefill");
            restored.restore(&path).expect("restoring");
            assert_eq!(restored.tokens().len(), prompt.len() + 1);
            assert_eq!(answer(&mut restored, greedy(20)), expected, "{name}, {kv:?}");
            session.prefill(&[]).expect("the last token runs");
            restored.prefill(&[]).expect("the last token runs");
            assert_eq!(bits(session.logits()), bits(restored.logits()), "{name}, {kv:?}");
            let left: Vec<_> = std::fs::read_dir(folder.path()).expect("the folder").collect();
            assert!(
                left.iter().flatten().all(|file| file.path().extension().is_some_and(|e| e == "cache")),
                "{left:?}"
            );
        }
    }
}

#[test]
fn a_saved_cache_is_converted_to_the_models_type() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.cache");
    let with = |kv| Model::load(demo(), LoadOptions { kv: Some(kv), ..exact() }).expect("the demo model loads");
    let kinds = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8];
    for saved in kinds {
        let mut session = session_with(&with(saved), "Once upon a time there was a king who had");
        session.save(&path).expect("saving");
        session.prefill(&[300]).expect("prefill");
        for restored in kinds {
            let mut other = with(restored).session();
            other.restore(&path).unwrap_or_else(|error| panic!("{saved:?} to {restored:?}: {error}"));
            other.prefill(&[300]).expect("prefill");
            let difference = difference(other.logits().expect("logits"), session.logits().expect("logits"));
            // bf16 rounds to 8 bits, int8 to 7 and a sign; logits are around 10.
            assert!(difference < 0.2, "{saved:?} to {restored:?}: logits are {difference} apart");
        }
    }
}

#[test]
fn a_damaged_or_foreign_saved_cache_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("demo.cache");
    let model = exact_demo();
    let mut session = session_with(&model, "Once upon a time there was a king");
    session.save(&path).expect("saving");
    let good = std::fs::read(&path).expect("the file");
    session.fork().save(&path).expect("saving");
    assert!(std::fs::read(&path).expect("the file") == good, "equal sessions give equal files");
    let tokens = session.tokens().to_vec();
    let mut refused = |what: &str, bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("writing");
        let error = session.restore(&path).err().unwrap_or_else(|| panic!("{what} is accepted"));
        assert!(matches!(error, Error::SavedCache { .. }), "{what}: {error}");
        assert_eq!(session.tokens(), tokens, "{what}");
    };
    refused("nothing", b"");
    refused("a text", b"not a cache at all, but a long enough text");
    refused("a huge header", &u64::MAX.to_le_bytes());
    for end in [4, 8, 100, good.len() / 2, good.len() - 1] {
        refused(&format!("{end} of {} bytes", good.len()), &good[..end]);
    }
    refused("bytes behind the end", &[good.as_slice(), b"more"].concat());
    // A bit anywhere: header, tokens, keys, values.
    let header = 8 + u64::from_le_bytes(*good.first_chunk().expect("a length")) as usize;
    let data = (header..good.len()).step_by(good.len() / 301);
    for at in (0..header).chain(data).chain([good.len() - 1]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        refused(&format!("bit 4 of byte {at}"), &bytes);
    }
    let error = session.restore(folder.path()).expect_err("a folder");
    assert!(matches!(error, Error::SavedCache { .. }), "{error}");
    let error = session.restore(folder.path().join("missing")).expect_err("no file");
    assert!(matches!(error, Error::Io { .. }), "{error}");

    std::fs::write(&path, &good).expect("writing");
    session.restore(&path).expect("the good file");
    for (what, options) in [
        ("another context", LoadOptions { context: Some(6), ..exact() }),
        ("other weights", LoadOptions { weights: WeightFormat::Int8, ..exact() }),
    ] {
        let other = Model::load(demo(), options).expect("the demo model loads");
        let error = other.session().restore(&path).expect_err(what);
        assert!(matches!(error, Error::SavedCache { .. } | Error::ContextFull { .. }), "{what}: {error}");
    }
    let error = session.save(folder.path().join("no/such/folder")).expect_err("no folder");
    assert!(matches!(error, Error::Io { .. }), "{error}");
}
