//! Which matrix gets which format.

use std::collections::BTreeMap;
use std::fmt;

use infer_kernels::KernelError;
use infer_kernels::quant::{int4, int8};

use crate::error::{Error, Result};
use crate::load::Checkpoint;
use crate::load::json::shown_name;
use crate::load::packed::{ALIGNMENT, Packed, PackedMatrix};
use crate::model::spec::{Matrix, Spec, Vector};
use crate::model::walk::{Parameter, Role, for_each_parameter};
use crate::options::WeightFormat;
use crate::quantize::glob;

/// The most bits of a weight, on average over all matrices, up to which value projections get 8 bits in a 4-bit model.
const MOST_BITS: f64 = 4.85;

/// A format for the matrices of some name: `model.layers.*.mlp.down_proj=q8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The names: `*` stands for any characters. The `.weight` at the end of a name may be left out.
    pub glob: String,
    /// What they become.
    pub format: WeightFormat,
}

impl Override {
    /// Reads `GLOB=FORMAT`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for anything else.
    pub fn parse(text: &str) -> Result<Override> {
        let parsed = text.rsplit_once('=').and_then(|(glob, format)| {
            let format = WeightFormat::named(format.trim())?;
            let glob = glob.trim().to_owned();
            (!glob.is_empty()).then_some(Override { glob, format })
        });
        let expected = "a glob of names, = and q8, q4 or stored, such as model.layers.*.mlp.down_proj=q8";
        parsed.ok_or_else(|| invalid(expected.to_owned(), text.to_owned()))
    }

    fn matches(&self, matrix: &Matrix) -> bool {
        let (tensor, name) = (matrix.tensor.as_str(), matrix.name());
        let stem = tensor.strip_suffix(".weight").unwrap_or(tensor);
        [tensor, stem, &name].into_iter().any(|name| glob::matches(&self.glob, name))
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.glob, self.format.name())
    }
}

fn invalid(expected: String, found: String) -> Error {
    Error::InvalidOption { option: "override", expected, found }
}

/// What each matrix of a model becomes, and its size.
///
/// 8 bits: every matrix. 4 bits: every matrix but the output head, whose errors reach the logits unaveraged and which
/// gets 8; value projections get 8 as well where the average over all matrices stays at most 4.85 bits. A tied
/// embedding is a head. Routers and learned positions, small and sensitive, stay as they are stored; so do norms and
/// biases.
#[derive(Clone, Debug)]
pub struct QuantPlan {
    summary: String,
    overrides: Vec<Override>,
    matrices: BTreeMap<String, Planned>,
    vectors: Class,
    /// Bytes of all vectors in memory, where they are f32.
    vector_memory: u64,
}

#[derive(Clone, Debug)]
struct Planned {
    role: Role,
    format: WeightFormat,
    weights: u64,
    bytes: u64,
}

/// Matrices of one purpose and one format, together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What they are for.
    pub name: &'static str,
    /// What they become.
    pub format: WeightFormat,
    /// Number of weights.
    pub weights: u64,
    /// Their size.
    pub bytes: u64,
}

impl QuantPlan {
    /// The plan for a model whose tensors have been checked.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an override whose glob describes no matrix, with names like it.
    pub fn new(
        spec: &Spec,
        checkpoint: &Checkpoint,
        weights: WeightFormat,
        overrides: &[Override],
    ) -> Result<QuantPlan> {
        let (mut roles, mut vectors): (BTreeMap<String, (&Matrix, Role)>, Vec<&Vector>) = Default::default();
        for_each_parameter(spec, &mut |parameter| match parameter {
            Parameter::Vector(vector) => vectors.push(vector),
            Parameter::Matrix(matrix, role) => {
                let known = roles.entry(matrix.name()).or_insert((matrix, role));
                known.1 = known.1.max(role);
            }
        });
        let summary = overrides.iter().fold(weights.name().to_owned(), |summary, rule| format!("{summary} {rule}"));
        let mut plan = QuantPlan {
            summary,
            overrides: overrides.to_vec(),
            matrices: BTreeMap::new(),
            vectors: vectors_class(checkpoint, &vectors),
            vector_memory: vectors.iter().map(|vector| (vector.len as u64).saturating_mul(4)).sum(),
        };
        let planned = |role, matrix: &Matrix, format| Planned {
            role,
            format,
            weights: (matrix.rows as u64).saturating_mul(matrix.cols as u64),
            bytes: matrix_bytes(checkpoint, matrix, format),
        };
        if let Some(packed) = checkpoint.packed() {
            plan.summary.clone_from(&packed.summary);
            refuse_changes(packed, weights, overrides)?;
            for (name, (matrix, role)) in &roles {
                let format = format_in_file(checkpoint, packed, matrix)?;
                plan.matrices.insert(name.clone(), planned(*role, matrix, format));
            }
            return Ok(plan);
        }
        for (name, (matrix, role)) in &roles {
            plan.matrices.insert(name.clone(), planned(*role, matrix, default_format(*role, weights)));
        }
        if weights == WeightFormat::Int4 {
            let mut richer = plan.matrices.clone();
            for (name, (matrix, role)) in roles.iter().filter(|(_, (_, role))| *role == Role::Value) {
                richer.insert(name.clone(), planned(*role, matrix, WeightFormat::Int8));
            }
            if bits(richer.values()) <= MOST_BITS {
                plan.matrices = richer;
            }
        }
        for rule in overrides {
            let mut described = roles.iter().filter(|(_, (matrix, _))| rule.matches(matrix)).peekable();
            if described.peek().is_none() {
                let names = roles.values().map(|(matrix, _)| matrix.tensor.as_str());
                let names = names.map(|name| name.strip_suffix(".weight").unwrap_or(name));
                let near = glob::nearest(&rule.glob, names, 3).join(", ");
                return Err(invalid(format!("the name of a matrix (near: {near})"), rule.glob.clone()));
            }
            for (name, (matrix, role)) in described {
                plan.matrices.insert(name.clone(), planned(*role, matrix, rule.format));
            }
        }
        Ok(plan)
    }

    /// What a matrix becomes; as stored if it is none of this model.
    pub(crate) fn format_of(&self, name: &str) -> WeightFormat {
        self.matrices.get(name).map_or(WeightFormat::AsStored, |planned| planned.format)
    }

    /// Whether anything becomes something else than it is stored as.
    pub fn quantizes(&self) -> bool {
        self.matrices.values().any(|planned| planned.format != WeightFormat::AsStored)
    }

    /// The flags that the plan was made from: `q4 model.layers.*.mlp.down_proj=q8`.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// The overrides that the plan was made with.
    pub fn overrides(&self) -> &[Override] {
        &self.overrides
    }

    /// Bytes of all weights in memory, those that stay mapped included.
    pub fn memory_bytes(&self) -> u64 {
        let matrices = self.matrices.values().map(|planned| planned.bytes);
        matrices.fold(self.vector_memory, u64::saturating_add)
    }

    /// Bits of a weight on average over everything, norms and biases included.
    pub fn bits_per_weight(&self) -> f64 {
        let matrices = self.matrices.values().map(|planned| (planned.bytes, planned.weights));
        average_bits(matrices.chain([(self.vectors.bytes, self.vectors.weights)]))
    }

    /// Bits of a weight on average over all matrices.
    pub fn bits_per_matrix_weight(&self) -> f64 {
        bits(self.matrices.values())
    }

    /// The matrices by purpose and format, in the order in which a token meets them; norms and biases last.
    pub fn classes(&self) -> Vec<Class> {
        let mut classes: BTreeMap<(Role, &str), Class> = BTreeMap::new();
        for Planned { role, format, weights, bytes } in self.matrices.values() {
            let empty = Class { name: role_name(*role), format: *format, weights: 0, bytes: 0 };
            let class = classes.entry((*role, format.name())).or_insert(empty);
            class.weights = class.weights.saturating_add(*weights);
            class.bytes = class.bytes.saturating_add(*bytes);
        }
        let vectors = Some(self.vectors.clone()).filter(|vectors| vectors.weights > 0);
        classes.into_values().chain(vectors).collect()
    }
}

/// Packed weights are what they are.
fn refuse_changes(packed: &Packed, weights: WeightFormat, overrides: &[Override]) -> Result<()> {
    if let Some(rule) = overrides.first() {
        return Err(invalid("none for a model that is packed already".to_owned(), rule.to_string()));
    }
    if weights != WeightFormat::AsStored && weights != packed.weights() {
        let expected = format!("{} or nothing for a model that is packed already", packed.weights().name());
        return Err(Error::InvalidOption { option: "weights", expected, found: weights.name().to_owned() });
    }
    Ok(())
}

/// The format that a packed file has a matrix in. Its length is compared with the matrix's shape.
fn format_in_file(checkpoint: &Checkpoint, packed: &Packed, matrix: &Matrix) -> Result<WeightFormat> {
    let name = matrix.name();
    let wrong = |expected: String, found: String| Error::Tensor {
        path: checkpoint.path().to_owned(),
        tensor: shown_name(&name),
        expected,
        found,
    };
    let Some(PackedMatrix { format, bytes }) = packed.matrices.get(&name) else {
        return match checkpoint.has_bytes(&matrix.tensor) {
            true => Ok(WeightFormat::AsStored),
            false => Err(wrong("to be in the file".to_owned(), "nothing".to_owned())),
        };
    };
    let (rows, cols) = (matrix.rows, matrix.cols);
    let length = packed_bytes(*format, rows, cols).ok_or(KernelError::TooLarge { rows, cols })?;
    if length.checked_next_multiple_of(ALIGNMENT) != Some(bytes.len()) {
        let expected = format!("{length} bytes and padding for {rows} x {cols} in {}", format.name());
        return Err(wrong(expected, format!("{} bytes", bytes.len())));
    }
    Ok(*format)
}

fn default_format(role: Role, weights: WeightFormat) -> WeightFormat {
    match (role, weights) {
        (Role::Router | Role::Positions, _) => WeightFormat::AsStored,
        (Role::Head, WeightFormat::Int4) => WeightFormat::Int8,
        _ => weights,
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Embedding => "embedding",
        Role::Positions => "positions",
        Role::Attention => "query, key, output",
        Role::Value => "value",
        Role::Router => "router",
        Role::Mlp => "gate, up",
        Role::Down => "down",
        Role::Projection => "projection",
        Role::Head => "head",
    }
}

/// Bytes of a packed matrix; `None` if they overflow or the format packs nothing.
pub(crate) fn packed_bytes(format: WeightFormat, rows: usize, cols: usize) -> Option<usize> {
    match format {
        WeightFormat::AsStored => None,
        WeightFormat::Int8 => int8::packed_bytes(rows, cols),
        WeightFormat::Int4 => int4::packed_bytes(rows, cols),
    }
}

fn matrix_bytes(checkpoint: &Checkpoint, matrix: &Matrix, format: WeightFormat) -> u64 {
    let (rows, cols) = (matrix.rows, matrix.cols);
    let bytes = match format {
        WeightFormat::AsStored => {
            rows.checked_mul(cols).and_then(|n| n.checked_mul(element(checkpoint, &matrix.tensor)))
        }
        packed => packed_bytes(packed, rows, cols),
    };
    bytes.map_or(u64::MAX, |bytes| bytes as u64)
}

/// Bytes of an element as it is stored.
fn element(checkpoint: &Checkpoint, tensor: &str) -> usize {
    checkpoint.dtype(tensor).map_or(size_of::<f32>(), |dtype| dtype.bits() / 8)
}

fn vectors_class(checkpoint: &Checkpoint, vectors: &[&Vector]) -> Class {
    let stored = |vector: &Vector| vector.tensors.first().map_or(size_of::<f32>(), |name| element(checkpoint, name));
    Class {
        name: "norms, biases",
        format: WeightFormat::AsStored,
        weights: vectors.iter().map(|vector| vector.len as u64).sum(),
        bytes: vectors.iter().map(|vector| (vector.len as u64).saturating_mul(stored(vector) as u64)).sum(),
    }
}

fn bits<'a>(matrices: impl Iterator<Item = &'a Planned>) -> f64 {
    average_bits(matrices.map(|planned| (planned.bytes, planned.weights)))
}

/// Bits of a weight, from bytes and weights of parts.
fn average_bits(parts: impl Iterator<Item = (u64, u64)>) -> f64 {
    let sum = |(bytes, weights): (f64, f64), part: (u64, u64)| (bytes + part.0 as f64, weights + part.1 as f64);
    let (bytes, weights) = parts.fold((0.0, 0.0), sum);
    if weights > 0.0 { 8.0 * bytes / weights } else { 0.0 }
}
