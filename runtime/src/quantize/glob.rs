//! Patterns of tensor names: `*` stands for any characters, dots included, and everything else for itself.

/// Whether `glob` describes all of `name`.
pub(crate) fn matches(glob: &str, name: &str) -> bool {
    let (glob, name) = (glob.as_bytes(), name.as_bytes());
    let (mut g, mut n) = (0, 0);
    // Where to go on if what follows the last star does not fit: the star takes one character more. Earlier stars
    // never have to be reconsidered, so the time is at most the product of the lengths.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                retry = Some((g + 1, n));
                g += 1;
            }
            Some(byte) if name.get(n) == Some(byte) => (g, n) = (g + 1, n + 1),
            _ => match retry {
                Some((after_star, taken)) => {
                    retry = Some((after_star, taken + 1));
                    (g, n) = (after_star, taken + 1);
                }
                None => return false,
            },
        }
    }
    glob.iter().skip(g).all(|&byte| byte == b'*')
}

/// The `n` names most like `glob`, best first; names that differ in numbers alone are shown once, with `*` for them.
pub(crate) fn nearest<'a>(glob: &str, names: impl Iterator<Item = &'a str>, n: usize) -> Vec<String> {
    /// What is compared; names out of a file may be of any length.
    const LONGEST: usize = 120;
    let cut = |text: &str| text.chars().take(LONGEST).collect::<Vec<char>>();
    let glob = cut(&without_numbers(glob));
    let mut shapes: Vec<String> = names.map(without_numbers).collect();
    shapes.sort();
    shapes.dedup();
    shapes.sort_by_cached_key(|shape| edit_distance(&glob, &cut(shape)));
    shapes.truncate(n);
    shapes
}

/// `model.layers.12.mlp` as `model.layers.*.mlp`.
fn without_numbers(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect();
    parts.join(".")
}

/// Characters to insert, remove or replace in order to get from one text to the other (Levenshtein, 1966).
fn edit_distance(from: &[char], to: &[char]) -> usize {
    // row[j] is the distance of the part of `from` read so far to the first j + 1 characters of `to`.
    let mut row: Vec<usize> = (1..=to.len()).collect();
    for (i, a) in from.iter().enumerate() {
        let (mut diagonal, mut left) = (i, i + 1);
        for (cell, b) in row.iter_mut().zip(to) {
            let replaced = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = replaced.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or(from.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters_and_the_whole_name_counts() {
        let cases = [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "a.b", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("b", "ab", false),
            ("a*", "a", true),
            ("*b", "ab", true),
            ("*b", "abc", false),
            ("*.mlp.*", "model.layers.3.mlp.down_proj", true),
            ("model.layers.*.mlp.down_proj", "model.layers.10.mlp.down_proj", true),
            ("model.layers.*.mlp.down_proj", "model.layers.10.mlp.up_proj", false),
            ("model.layers.1.*", "model.layers.10.mlp", false),
            ("*a*a*b", "aaaaaaaaaaaab", true),
            ("*a*a*b", "aaaaaaaaaaaac", false),
            ("a**b", "ab", true),
            ("?", "a", false),
            ("[0]", "[0]", true),
        ];
        for (glob, name, expected) in cases {
            assert_eq!(matches(glob, name), expected, "{glob:?} on {name:?}");
        }
    }

    #[test]
    fn a_glob_of_many_stars_takes_no_exponential_time() {
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39)));
        assert!(!matches(&format!("{}b", "*a".repeat(60)), &"a".repeat(5000)));
    }

    #[test]
    fn distances_are_the_fewest_edits() {
        let cases = [("", "", 0), ("abc", "abc", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)];
        for (from, to, expected) in cases {
            let [a, b] = [from, to].map(|text| text.chars().collect::<Vec<char>>());
            assert_eq!((edit_distance(&a, &b), edit_distance(&b, &a)), (expected, expected), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn near_names_come_once_without_their_numbers() {
        let names =
            ["lm_head", "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"];
        let found = nearest("model.layers.*.mlp.down", names.into_iter(), 2);
        assert_eq!(found, ["model.layers.*.mlp.down_proj", "model.layers.*.mlp.up_proj"]);
    }
}
