//! Rotary position embedding (Su et al., arXiv:2104.09864) over half-split pairs.

use super::Isa;
use super::isa::elementwise::Loop;

struct Rotate<'a> {
    heads: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Loop for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for head in self.heads.chunks_exact_mut(self.head_dim) {
            let (first, rest) = head.split_at_mut(self.cos.len());
            for (((a, b), cos), sin) in first.iter_mut().zip(rest).zip(self.cos).zip(self.sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Rotates, in place, the first `2 * cos.len()` values of each head: the pair (i, i + cos.len()) by the angle
/// whose cosine and sine are `cos[i]` and `sin[i]`. Values behind them are left alone (partial rotary).
/// `heads` is [any number of heads, head_dim].
pub fn rotate(isa: Isa, heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    assert_eq!(sin.len(), half, "length of sin, which must be that of cos");
    assert!(2 * half <= head_dim, "{half} pairs are rotated, but head_dim is {head_dim}");
    assert!(head_dim > 0 && heads.len().is_multiple_of(head_dim), "{} values in heads of {head_dim}", heads.len());
    isa.compute(Rotate { heads, head_dim, cos, sin });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_half_split_and_the_rest_of_a_head_is_left_alone() {
        let before = [1.0, 2.0, 3.0, 4.0, 9.0, 8.0, 5.0, 6.0, 7.0, 8.0, 7.0, 6.0];
        for isa in Isa::available() {
            let mut heads = before;
            rotate(isa, &mut heads, 6, &[0.0, 1.0], &[1.0, 0.0]);
            assert_eq!(heads, [-3.0, 2.0, 1.0, 4.0, 9.0, 8.0, -7.0, 6.0, 5.0, 8.0, 7.0, 6.0], "{}", isa.name());
        }
    }
}
