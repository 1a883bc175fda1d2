//! `infer logits`: the numbers behind the text, for measuring and comparing.

use std::io::{self, Write};

use anyhow::{Result, anyhow};
use infer_runtime::{Compute, Error, LoadOptions, Session};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::args::{LogitsArgs, ModelArgs};
use crate::exit::wrong_use;
use crate::interrupt::Interrupts;
use crate::load;
use crate::out_file::OutFile;
use crate::terminal;
use crate::values;

/// Computes and writes.
pub fn run(args: &LogitsArgs, model_args: &ModelArgs, interrupts: &Interrupts) -> Result<()> {
    let prompt = values::tokens("--tokens", &args.tokens)?;
    if prompt.is_empty() {
        return Err(wrong_use("--tokens: expected at least one token id, found none"));
    }
    let out = OutFile::create(&args.out, interrupts)?;
    let options = checked_options(&prompt, args.decode, model_args)?;
    let model = load::weights(load::outline(model_args, options)?, model_args.verbose)?;
    let mut session = model.session();
    let logits = session.forward(&prompt)?;
    let vocab_size = logits.vocab_size();
    check_finite(logits.values(), vocab_size, 0)?;
    let decoded = match args.decode {
        None => None,
        Some(steps) => {
            let last = logits.row(prompt.len() - 1).to_vec();
            Some(decode(&mut session, last, steps)?)
        }
    };
    let mut tensors = Vec::new();
    if let Some(Decoded { tokens, step_logits }) = &decoded {
        // First, so that every tensor lies at a multiple of its element's size.
        tensors.push(Tensor { name: "tokens", shape: vec![tokens.len()], data: Data::I64(tokens) });
        tensors.push(Tensor::f32("step_logits", tokens.len(), vocab_size, step_logits));
    }
    tensors.push(Tensor::f32("logits", prompt.len(), vocab_size, logits.values()));
    let header = header(&tensors)?;
    out.finish(|file| write(file, &header, &tensors))
}

/// Looks at the request before the weights are loaded, which may take minutes. The prompt must fit the context;
/// decoding may go on beyond it, unless the model has learned positions or `--ctx` says where to end.
fn checked_options(prompt: &[u32], decode: Option<usize>, model_args: &ModelArgs) -> Result<LoadOptions> {
    let mut options = load::options(model_args, Compute::F32)?;
    let outline = load::outline(model_args, options.clone())?;
    let spec = outline.spec();
    let vocab_size = spec.vocab_size;
    if let Some(id) = prompt.iter().find(|&&id| id as usize >= vocab_size) {
        return Err(wrong_use(format!("--tokens: expected ids below {vocab_size}, the vocabulary's size, found {id}")));
    }
    let own = spec.context_length.unwrap_or(usize::MAX);
    let context = options.context.unwrap_or(own).min(own);
    // The last token is chosen and not run through the model.
    let total = prompt.len().saturating_add(decode.unwrap_or(0).saturating_sub(1));
    if prompt.len() > context {
        return Err(Error::ContextFull { needed: prompt.len(), context }.into());
    }
    // All logits are held until the file is written.
    let rows = prompt.len().saturating_add(decode.unwrap_or(0)) as u64;
    let needed = rows.saturating_mul(vocab_size as u64).saturating_mul(size_of::<f32>() as u64);
    let plan = outline.memory_plan()?;
    if let Some(available) = plan.available.map(|available| available.saturating_sub(plan.weights))
        && needed > available
    {
        let (needed, available) = (terminal::bytes(needed), terminal::bytes(available));
        let problem = format!("the logits of {rows} tokens take {needed}, available besides the weights {available}");
        return Err(Error::Memory(problem).into());
    }
    if total > context {
        if options.context.is_some() || spec.embedding.positions.is_some() {
            return Err(Error::ContextFull { needed: total, context }.into());
        }
        options.context = Some(total);
        options.beyond_context = true;
    }
    Ok(options)
}

struct Decoded {
    tokens: Vec<i64>,
    /// [tokens, vocabulary].
    step_logits: Vec<f32>,
}

/// The likeliest token `steps` times; `logits` are those of the prompt's last token.
fn decode(session: &mut Session, mut logits: Vec<f32>, steps: usize) -> Result<Decoded> {
    let mut decoded = Decoded { tokens: Vec::new(), step_logits: Vec::new() };
    for step in 0..steps {
        let token = likeliest(&logits).ok_or_else(|| anyhow!("the model has an empty vocabulary"))?;
        decoded.step_logits.extend_from_slice(&logits);
        decoded.tokens.push(i64::from(token));
        if step + 1 < steps {
            let position = session.tokens().len();
            let next = session.forward(&[token])?;
            check_finite(next.values(), next.vocab_size(), position)?;
            logits.copy_from_slice(next.values());
        }
    }
    Ok(decoded)
}

/// The id of the largest logit, the lowest among equals.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let largest = logits.iter().zip(0u32..).reduce(|best, next| if next.0 > best.0 { next } else { best });
    largest.map(|(_, id)| id)
}

fn check_finite(logits: &[f32], vocab_size: usize, first_position: usize) -> Result<(), Error> {
    match logits.iter().position(|logit| !logit.is_finite()) {
        None => Ok(()),
        Some(index) => {
            Err(Error::NotFinite { position: first_position + index / vocab_size, token: index % vocab_size })
        }
    }
}

struct Tensor<'a> {
    name: &'static str,
    shape: Vec<usize>,
    data: Data<'a>,
}

enum Data<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
}

impl<'a> Tensor<'a> {
    fn f32(name: &'static str, rows: usize, cols: usize, data: &'a [f32]) -> Self {
        Tensor { name, shape: vec![rows, cols], data: Data::F32(data) }
    }
}

/// The beginning of a safetensors file: the header's length and the header, padded with spaces to 8 bytes. The tensors
/// follow from memory, so that logits of gigabytes are not copied for writing.
fn header(tensors: &[Tensor<'_>]) -> Result<Vec<u8>> {
    let mut offset = 0;
    let infos = tensors.iter().map(|tensor| {
        let (dtype, n_bytes) = match tensor.data {
            Data::F32(values) => (Dtype::F32, size_of_val(values)),
            Data::I64(values) => (Dtype::I64, size_of_val(values)),
        };
        let start = offset;
        offset += n_bytes;
        (tensor.name.to_owned(), TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (start, offset) })
    });
    let mut json = serde_json::to_vec(&Metadata::new(None, infos.collect())?)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

fn write(file: &mut dyn Write, header: &[u8], tensors: &[Tensor<'_>]) -> io::Result<()> {
    file.write_all(header)?;
    for tensor in tensors {
        match tensor.data {
            Data::F32(values) => write_values(file, values, |value| value.to_le_bytes())?,
            Data::I64(values) => write_values(file, values, |value| value.to_le_bytes())?,
        }
    }
    Ok(())
}

fn write_values<T: Copy, const N: usize>(
    file: &mut dyn Write,
    values: &[T],
    bytes: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(4096 * N);
    for chunk in values.chunks(4096) {
        buffer.clear();
        buffer.extend(chunk.iter().flat_map(|&value| bytes(value)));
        file.write_all(&buffer)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_as_it_was_written() {
        let logits = [1.0, -2.5, f32::MIN_POSITIVE, 4.0];
        let tensors = [
            Tensor::f32("logits", 2, 2, &logits),
            Tensor::f32("step_logits", 0, 2, &[]),
            Tensor { name: "tokens", shape: vec![1], data: Data::I64(&[-7]) },
        ];
        let mut file = Vec::new();
        write(&mut file, &header(&tensors).expect("a header"), &tensors).expect("memory takes all");
        let read = safetensors::SafeTensors::deserialize(&file).expect("a safetensors file");
        let written = read.tensor("logits").expect("logits");
        assert_eq!((written.dtype(), written.shape()), (Dtype::F32, &[2, 2][..]));
        assert_eq!(written.data(), logits.map(f32::to_le_bytes).concat());
        assert_eq!(read.tensor("step_logits").expect("step_logits").shape(), [0, 2]);
        assert_eq!(read.tensor("tokens").expect("tokens").data(), (-7i64).to_le_bytes());
    }

    #[test]
    fn the_likeliest_token_is_the_lowest_id_among_equals() {
        for (logits, expected) in [(vec![1.0, 3.0, 3.0], Some(1)), (vec![-1.0], Some(0)), (vec![], None)] {
            assert_eq!(likeliest(&logits), expected, "{logits:?}");
        }
    }

    #[test]
    fn a_logit_that_is_not_finite_names_its_position() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let found = check_finite(&[0.0, 0.0, 0.0, bad], 2, 10);
            assert!(matches!(found, Err(Error::NotFinite { position: 11, token: 1 })), "{found:?}");
        }
    }
}
