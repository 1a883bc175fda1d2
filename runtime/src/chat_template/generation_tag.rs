//! `{% generation %}` … `{% endgeneration %}` marks what an assistant wrote, for training. For rendering it is a
//! scope that shows its body, which the engine knows as `{% with %}`.

/// Rewrites the two tags, and nothing inside comments, raw blocks, expressions or strings.
pub(super) fn rewrite(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let length = if from.starts_with("{#") {
            from.find("#}").map_or(from.len(), |end| end + 2)
        } else if from.starts_with("{{") {
            tag_length(from, "}}")
        } else if from.starts_with("{%") {
            let length = tag_length(from, "%}");
            match first_word(from) {
                ("raw", _) => length + raw_length(from.get(length..).unwrap_or("")),
                ("generation", at) => {
                    out.push_str(&replaced(from, length, at, "generation", "with"));
                    rest = from.get(length..).unwrap_or("");
                    continue;
                }
                ("endgeneration", at) => {
                    out.push_str(&replaced(from, length, at, "endgeneration", "endwith"));
                    rest = from.get(length..).unwrap_or("");
                    continue;
                }
                _ => length,
            }
        } else {
            1
        };
        let (tag, behind) = from.split_at(length.min(from.len()));
        out.push_str(tag);
        rest = behind;
    }
    out.push_str(rest);
    out
}

/// The length of the tag at the beginning of `text`, over strings that contain its end.
fn tag_length(text: &str, end: &str) -> usize {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if bytes.get(at..).is_some_and(|rest| rest.starts_with(end.as_bytes())) => return at + end.len(),
            None => {}
        }
        at += 1;
    }
    text.len()
}

/// The first word of a `{% … %}` tag, and where it begins.
fn first_word(tag: &str) -> (&str, usize) {
    let inside = tag.get(2..).unwrap_or("");
    let inside = inside.strip_prefix(['-', '+']).unwrap_or(inside);
    let word = inside.trim_start();
    let at = tag.len() - word.len();
    let end = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
    (word.get(..end).unwrap_or(""), at)
}

fn replaced(from: &str, length: usize, at: usize, old: &str, new: &str) -> String {
    let before = from.get(..at).unwrap_or("");
    let behind = from.get(at + old.len()..length).unwrap_or("");
    format!("{before}{new}{behind}")
}

/// The length of the text up to and with the tag that ends a raw block.
fn raw_length(text: &str) -> usize {
    let mut from = 0;
    while let Some(start) = text.get(from..).and_then(|rest| rest.find("{%")) {
        let tag = text.get(from + start..).unwrap_or("");
        if first_word(tag).0 == "endraw" {
            return from + start + tag_length(tag, "%}");
        }
        from += start + 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_tags_are_rewritten() {
        for (source, expected) in [
            ("{% generation %}a{% endgeneration %}", "{% with %}a{% endwith %}"),
            ("{%- generation -%}a{%+endgeneration-%}", "{%- with -%}a{%+endwith-%}"),
            ("generation {{ generation }}", "generation {{ generation }}"),
            ("{% if generation %}x{% endif %}", "{% if generation %}x{% endif %}"),
            ("{{ '{% generation %}' }}", "{{ '{% generation %}' }}"),
            ("{{ 'it\\'s }} {% generation %}' }}", "{{ 'it\\'s }} {% generation %}' }}"),
            ("{# {% generation %} #}{% generation %}", "{# {% generation %} #}{% with %}"),
            (
                "{% raw %}{% generation %}{% endraw %}{% generation %}",
                "{% raw %}{% generation %}{% endraw %}{% with %}",
            ),
            ("{% generations %}", "{% generations %}"),
            ("{ {% set x = '%}' %}{%generation%}é{", "{ {% set x = '%}' %}{%with%}é{"),
            ("{% raw %}{% generation", "{% raw %}{% generation"),
            ("{%", "{%"),
        ] {
            assert_eq!(rewrite(source), expected);
        }
    }
}
