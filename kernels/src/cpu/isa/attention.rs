//! Attention: choosing the tier, and the checks that a tier relies on.
//!
//! Panels hold two of the summed index side by side (see [`crate::cpu::kv`]), so that the same bytes serve `vdpbf16ps`
//! and f32 arithmetic.

use half::{bf16, f16};

use super::bf16::Bf16Isa;
use super::{LANES, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::attention::softmax::Softmax;
use crate::cpu::matrix::private::Lanes;
use crate::cpu::{Isa, Tier};

/// Queries that are multiplied with one step of keys together.
pub(in crate::cpu) const QUERIES: usize = 8;

/// Blocks of a step: its keys and values stay in the first cache while the queries of a tile meet them.
pub(in crate::cpu) const STEP_BLOCKS: usize = 8;

/// What a panel may hold.
pub(in crate::cpu) trait PanelValue: Copy + Default + Send + Sync + Lanes + 'static {
    /// The value as f32, exact.
    fn widen(self) -> f32;
}

impl PanelValue for f32 {
    fn widen(self) -> f32 {
        self
    }
}

impl PanelValue for f16 {
    fn widen(self) -> f32 {
        crate::cpu::matrix::Element::widen(self)
    }
}

impl PanelValue for bf16 {
    fn widen(self) -> f32 {
        crate::cpu::matrix::Element::widen(self)
    }
}

impl PanelValue for i8 {
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

/// Sums of products of `n` inputs with panels, one row of sums for each input.
pub(in crate::cpu) struct Product<'a, X, P> {
    /// Inputs, at most [`QUERIES`].
    pub n: usize,
    /// Their rows, which start `x_stride` apart.
    pub x: &'a [X],
    pub x_stride: usize,
    /// Keys, or values, of at most [`STEP_BLOCKS`] blocks.
    pub blocks: &'a [&'a [P]],
    /// What will be read next, as many as `blocks`, or nothing: asked for meanwhile, a block with each block.
    pub ahead: &'a [&'a [u8]],
    /// The first of these inputs among all that meet the blocks, and how many these are: they share in asking.
    pub share: (usize, usize),
    /// What old sums are multiplied with, one factor for each input; nothing where sums are overwritten.
    pub factors: &'a [f32],
    /// Rows of sums, which start `out_stride` apart.
    pub out: &'a mut [f32],
    pub out_stride: usize,
}

impl<X, P> Product<'_, X, P> {
    /// Checks a product of inputs that are `depth` long with sums that are `width` long.
    fn check(&self, depth: usize, width: usize) {
        assert!(
            self.n <= QUERIES && self.blocks.len() <= STEP_BLOCKS,
            "{} inputs, {} blocks",
            self.n,
            self.blocks.len()
        );
        let equal = self.blocks.iter().all(|block| block.len() == self.blocks[0].len());
        assert!(equal && depth.is_multiple_of(2), "blocks of one length, an even depth");
        assert!(self.ahead.is_empty() || self.ahead.len() == self.blocks.len(), "blocks ahead");
        let (first, all) = self.share;
        assert!(first + self.n <= all, "inputs {first} to {} of {all}", first + self.n);
        let rows = |stride: usize, len: usize| if self.n == 0 { 0 } else { (self.n - 1) * stride + len };
        assert!(self.x.len() >= rows(self.x_stride, depth), "{} inputs for {} rows of {depth}", self.x.len(), self.n);
        assert!(self.out.len() >= rows(self.out_stride, width), "{} sums for {} rows", self.out.len(), self.n);
    }

    /// Scores: a block is one panel of keys, as deep as an input is long; its sums lie beside those of the last block.
    fn check_scores(&self) -> bool {
        let Some(block) = self.blocks.first() else { return false };
        assert!(self.factors.is_empty(), "scores overwrite");
        self.check(block.len() / LANES, self.blocks.len() * LANES);
        self.n > 0 && !block.is_empty()
    }

    /// Weighted values: a block has a panel for each [`LANES`] sums, [`LANES`] deep; inputs go on from block to block.
    fn check_values(&self) -> bool {
        let Some(block) = self.blocks.first() else { return false };
        assert!(block.len().is_multiple_of(LANES * LANES), "values in whole panels");
        assert_eq!(self.factors.len(), self.n, "a factor for each input");
        self.check(self.blocks.len() * LANES, block.len() / LANES);
        self.n > 0 && !block.is_empty()
    }
}

impl Isa {
    /// `out[t][16 b + lane] = sum_k x[t][k] * blocks[b][k / 2][lane][k % 2]`.
    pub(in crate::cpu) fn scores<P: PanelValue>(self, product: Product<'_, f32, P>) {
        if !product.check_scores() {
            return;
        }
        match self.0 {
            Tier::Portable => portable::scores(product),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::attention::scores(token, product),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::attention::scores(token, product),
        }
    }

    /// `out[t][i] = factors[t] * out[t][i] + sum_b sum_k x[t][16 b + k] * blocks[b][m][k / 2][lane][k % 2]`, where
    /// i = 16 m + lane.
    pub(in crate::cpu) fn add_values<P: PanelValue>(self, product: Product<'_, f32, P>) {
        if !product.check_values() {
            return;
        }
        match self.0 {
            Tier::Portable => portable::add_values(product),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::attention::add_values(token, product),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::attention::add_values(token, product),
        }
    }

    /// See [`Softmax::run`].
    pub(in crate::cpu) fn weigh(self, softmax: Softmax<'_>) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::attention::weigh(token, softmax),
            _ => self.compute(softmax),
        }
    }

    /// `out[i] = values[i]`, exact.
    pub(in crate::cpu) fn widen_panel<P: PanelValue>(self, values: &[P], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values to widen");
        match self.0 {
            Tier::Portable => out.iter_mut().zip(values).for_each(|(out, value)| *out = value.widen()),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::attention::widen(token, values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::attention::widen(token, values, out),
        }
    }
}

/// Attention with inputs, keys, weights and values in bf16 and sums in f32.
impl Bf16Isa {
    /// See [`Isa::scores`].
    pub(in crate::cpu) fn scores(self, product: Product<'_, bf16, bf16>) {
        if !product.check_scores() {
            return;
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::attention_bf16::scores(token, product),
        }
    }

    /// See [`Isa::add_values`].
    pub(in crate::cpu) fn add_values(self, product: Product<'_, bf16, bf16>) {
        if !product.check_values() {
            return;
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::attention_bf16::add_values(token, product),
        }
    }

    /// See [`Isa::weigh`]; the weights are rounded to bf16, their total is not.
    pub(in crate::cpu) fn weigh(self, softmax: Softmax<'_>, weights: &mut [bf16]) {
        assert_eq!(weights.len(), softmax.scores.len(), "weights and scores");
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::attention_bf16::weigh(token, softmax, weights),
        }
    }

    /// The nearest values of bf16.
    pub(in crate::cpu) fn narrow_panel<P: PanelValue>(self, values: &[P], out: &mut [bf16]) {
        assert_eq!(values.len(), out.len(), "values to narrow");
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::attention_bf16::narrow(token, values, out),
        }
    }
}
