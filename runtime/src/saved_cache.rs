//! Saves a session to a file and brings it back, so that a long prompt is read once.
//!
//! The file is a safetensors file in one plain layout, whatever the blocks of a backend look like:
//! - `tokens` [n] u32;
//! - `layers.I.key` and `layers.I.value` [rows, n_kv_heads, head_dim] in the cache's own type (f32 for int8): the last `rows` of the
//!   cached tokens; all of them, but for a layer with a sliding window those that it can still see (and the rest
//!   of their block).
//!
//! Its metadata: `format`, `version`, `model` (the fingerprint of the model), `cached` (how many of the tokens the cache
//! has), `rope_factors` (`short` or `long`: the longrope factors that the keys were rotated with), `checksum` (of all
//! that and the data). A cache of another type is converted, rounding to nearest.

use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use half::{bf16, f16};
use infer_kernels::cpu::kv::KvType;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, json};

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::kv_cache::{Sequence, first_kept_token};
use crate::model::Model;
use crate::model::engine::Engine;
use crate::session::Session;

const FORMAT: &str = "infer-kv-cache";
const VERSION: &str = "1";
/// A header for 500 layers has about 100 kB.
const LARGEST_HEADER: u64 = 4 << 20;

impl Session {
    /// Writes tokens and cache to a file, first under a temporary name: an old file is replaced whole or not at all.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        write_and_rename(path, |file| write(self, file)).map_err(|source| Error::io(path, source))
    }

    /// Replaces tokens and cache by those of a file that [`Self::save`] wrote with the same model (its weights in the
    /// same format). On failure this session stays as it was.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read; [`Error::SavedCache`] if it is damaged or of another model;
    /// [`Error::ContextFull`] if it does not fit the context; [`Error::Memory`] if the cache has no room for it.
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let (tokens, sequence) = read(&self.model, path.as_ref())?;
        self.replace(tokens, sequence);
        Ok(())
    }
}

/// What the header says beside the tensors.
struct Facts<'a> {
    model: &'a str,
    cached: usize,
    long_factors: bool,
}

impl Facts<'_> {
    fn rope_factors(&self) -> &'static str {
        if self.long_factors { "long" } else { "short" }
    }

    /// A checksum that has taken in these facts; the data follow, tensor by tensor in [`Layout::of`]'s order.
    fn checksum(&self) -> Checksum {
        let mut checksum = Checksum::new();
        checksum.update(self.model.as_bytes());
        checksum.update(&(self.cached as u64).to_le_bytes());
        checksum.update(self.rope_factors().as_bytes());
        checksum
    }
}

/// The keys or values of one layer in the file.
struct Layout {
    name: String,
    layer: usize,
    is_key: bool,
    /// The first token.
    start: usize,
    /// [rows, n_kv_heads, head_dim].
    shape: [usize; 3],
}

impl Layout {
    /// The tensors after `tokens`, in the file's order.
    fn of(engine: &Engine, cached: usize) -> Vec<Layout> {
        let layers = engine.spec().layers.iter().enumerate();
        let tensors = layers.flat_map(|(layer, facts)| {
            let attention = &facts.attention;
            let start = first_kept_token(cached, attention.window);
            let shape = [cached.saturating_sub(start), attention.n_kv_heads, attention.head_dim];
            [("key", true), ("value", false)].map(|(part, is_key)| Layout {
                name: format!("layers.{layer}.{part}"),
                layer,
                is_key,
                start,
                shape,
            })
        });
        tensors.collect()
    }

    /// Values of one token.
    fn width(&self) -> usize {
        self.shape[1] * self.shape[2]
    }
}

fn write(session: &Session, file: &mut dyn Write) -> std::io::Result<()> {
    let (engine, sequence, tokens) = (session.model.engine(), &session.sequence, &session.tokens);
    let cached = sequence.len();
    let dtype = stored_dtype(engine.kv_type());
    let facts = Facts { model: session.model.fingerprint(), cached, long_factors: sequence.long_factors() };
    let layouts = Layout::of(engine, cached);
    let token_bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();

    let mut checksum = facts.checksum();
    checksum.update(&token_bytes);
    for layout in &layouts {
        checksum.update(&stored_bytes(engine, sequence, layout, dtype));
    }
    // Written here and not by the crate, whose metadata come in an order of chance: equal sessions give equal files.
    let metadata = json!({
        "format": FORMAT,
        "version": VERSION,
        "model": facts.model,
        "cached": cached.to_string(),
        "rope_factors": facts.rope_factors(),
        "checksum": checksum.finish(),
    });
    let mut end = 0;
    let mut info = |dtype, shape: &[usize], n_bytes| {
        let start = end;
        end += n_bytes;
        serde_json::to_value(TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (start, end) })
    };
    let mut header = Map::from_iter([("__metadata__".to_owned(), metadata)]);
    header.insert("tokens".to_owned(), info(Dtype::U32, &[tokens.len()], token_bytes.len())?);
    for layout in &layouts {
        let n_bytes = layout.shape.iter().product::<usize>() * dtype.bitsize() / 8;
        header.insert(layout.name.clone(), info(dtype, &layout.shape, n_bytes)?);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    file.write_all(&token_bytes)?;
    layouts.iter().try_for_each(|layout| file.write_all(&stored_bytes(engine, sequence, layout, dtype)))
}

/// Keys or values of one layer as the file has them.
fn stored_bytes(engine: &Engine, sequence: &Sequence, layout: &Layout, dtype: Dtype) -> Vec<u8> {
    let width = layout.width();
    let (mut key, mut value) = (vec![0.0; width], vec![0.0; width]);
    let mut bytes = Vec::with_capacity(layout.shape[0] * width * dtype.bitsize() / 8);
    for position in layout.start..layout.start + layout.shape[0] {
        engine.read_kv(sequence, layout.layer, position, (&mut key, &mut value));
        for &x in if layout.is_key { &key } else { &value } {
            match dtype {
                Dtype::F16 => bytes.extend(f16::from_f32(x).to_le_bytes()),
                Dtype::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
                _ => bytes.extend(x.to_le_bytes()),
            }
        }
    }
    bytes
}

fn read(model: &Model, path: &Path) -> Result<(Vec<u32>, Sequence)> {
    let io = |source| Error::io(path, source);
    let refuse = |problem: String| Error::SavedCache { path: path.to_owned(), problem };
    // Asked before opening, which would wait for the other end of a pipe.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(refuse("expected a regular file".to_owned()));
    }
    let mut file = File::open(path).map_err(io)?;
    let file_len = file.metadata().map_err(io)?.len();

    let mut header_len = [0; 8];
    let damaged = |what: &str| refuse(format!("not a saved cache, or a damaged one: {what}"));
    read_exact(&mut file, &mut header_len).map_err(io)?.ok_or_else(|| damaged("it ends within its first 8 bytes"))?;
    let header_len = u64::from_le_bytes(header_len);
    if header_len > LARGEST_HEADER.min(file_len.saturating_sub(8)) {
        return Err(damaged("its header is longer than the file, or than any header"));
    }
    let mut header = vec![0; header_len as usize];
    read_exact(&mut file, &mut header).map_err(io)?.ok_or_else(|| damaged("it ends within its header"))?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(&error.to_string()))?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let field = |key: &str| metadata.get(key).map_or("", String::as_str);
    for (key, expected) in [("format", FORMAT), ("version", VERSION), ("model", model.fingerprint())] {
        if field(key) != expected {
            let found = field(key);
            return Err(refuse(format!("not a saved cache of this model: {key} is {found:?}, expected {expected:?}")));
        }
    }
    if (header.data_len() as u64).checked_add(8 + header_len) != Some(file_len) {
        return Err(damaged("its length is not what its header says"));
    }

    let tokens_info = header.info("tokens").ok_or_else(|| damaged("tokens are missing"))?;
    let &TensorInfo { dtype: Dtype::U32, data_offsets: (0, n_token_bytes), .. } = tokens_info else {
        return Err(damaged("tokens must come first, as u32"));
    };
    if n_token_bytes / 4 > model.context() {
        return Err(Error::ContextFull { needed: n_token_bytes / 4, context: model.context() });
    }
    let mut token_bytes = vec![0; n_token_bytes];
    read_exact(&mut file, &mut token_bytes).map_err(io)?.ok_or_else(|| damaged("it ends within its tokens"))?;
    let tokens: Vec<u32> = token_bytes.as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    if tokens.iter().any(|&token| token as usize >= model.spec().vocab_size) {
        return Err(damaged("a token is outside of the vocabulary"));
    }
    let cached = field("cached").parse().ok().filter(|&cached: &usize| cached <= tokens.len());
    let cached = cached.ok_or_else(|| damaged("more tokens are cached than there are"))?;
    let long_factors = match field("rope_factors") {
        "short" => false,
        "long" => true,
        _ => return Err(damaged("rope_factors is neither short nor long")),
    };
    let facts = Facts { model: model.fingerprint(), cached, long_factors };

    let engine = model.engine();
    let layouts = Layout::of(engine, cached);
    let mut offset = n_token_bytes;
    let mut dtype = stored_dtype(engine.kv_type());
    for (index, layout) in layouts.iter().enumerate() {
        let info = header.info(&layout.name).ok_or_else(|| damaged(&format!("{} is missing", layout.name)))?;
        if index == 0 {
            dtype = info.dtype;
        }
        let is_float = matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !is_float || info.dtype != dtype || info.shape != layout.shape || info.data_offsets.0 != offset {
            return Err(damaged(&format!("{} is {:?} {:?}", layout.name, info.dtype, info.shape)));
        }
        offset = info.data_offsets.1;
    }

    let sequence = engine.sequence_with_room(cached, facts.long_factors)?;
    let mut checksum = facts.checksum();
    checksum.update(&token_bytes);
    let mut keys = Vec::new();
    for layout in &layouts {
        let mut bytes = vec![0; layout.shape.iter().product::<usize>() * dtype.bitsize() / 8];
        read_exact(&mut file, &mut bytes).map_err(io)?.ok_or_else(|| damaged("it ends within its data"))?;
        checksum.update(&bytes);
        let values = to_f32(&bytes, dtype);
        if layout.is_key {
            keys = values;
            continue;
        }
        let rows = keys.chunks_exact(layout.width()).zip(values.chunks_exact(layout.width()));
        for (position, (key, value)) in (layout.start..).zip(rows) {
            engine.write_kv(&sequence, layout.layer, position, (key, value));
        }
    }
    if checksum.finish() != field("checksum") {
        return Err(damaged("its checksum does not agree with its content"));
    }
    Ok((tokens, sequence))
}

/// Fills `buffer`; none if the file ends before.
fn read_exact(file: &mut File, buffer: &mut [u8]) -> std::io::Result<Option<()>> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn stored_dtype(kv_type: KvType) -> Dtype {
    match kv_type {
        // What int8 codes and their scales stand for: exact in f32, and the same codes again when stored.
        KvType::F32 | KvType::Int8 => Dtype::F32,
        KvType::F16 => Dtype::F16,
        KvType::Bf16 => Dtype::BF16,
    }
}

fn to_f32(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let halves = bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F16 => halves.map(|&half| f16::from_le_bytes(half).to_f32()).collect(),
        Dtype::BF16 => halves.map(|&half| bf16::from_le_bytes(half).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect(),
    }
}

/// Writes a new file beside `path` and gives it that name when its bytes are on the disk.
fn write_and_rename(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<()> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or(std::io::ErrorKind::InvalidFilename)?.to_string_lossy();
    let unique = format!(".{name}.{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_file_name(unique);
    let file = File::create_new(&temporary)?;
    let unfinished = RemoveOnDrop(Some(temporary.clone()));
    let mut buffered = BufWriter::with_capacity(1 << 20, file);
    write(&mut buffered)?;
    buffered.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    fs::rename(&temporary, path)?;
    unfinished.keep();
    Ok(())
}

/// Removes an unfinished file.
struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(path);
        }
    }
}
