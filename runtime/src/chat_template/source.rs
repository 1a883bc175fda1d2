//! Rewrites a template where Jinja2 has syntax that the engine has not:
//! - `{% generation %}` … `{% endgeneration %}` marks what an assistant wrote, for training. For rendering it is a
//!   scope that shows its body: `{% with %}`.
//! - `'…' % value` formats a text; the engine's `%` is for numbers only. With a literal on the left it becomes a filter.

use super::filters::PERCENT;

/// Rewrites both, and nothing inside comments, raw blocks or strings.
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
        if tag.starts_with("{{") || tag.starts_with("{%") && first_word(tag).0 != "raw" {
            rewrite_percent(&mut out, tag);
        } else {
            out.push_str(tag);
        }
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

/// Appends a tag with each `'…' % operand` written as `('…'|filter(operand))`.
fn rewrite_percent(out: &mut String, tag: &str) {
    let mut rest = tag;
    while let Some(start) = rest.find(['"', '\'']) {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let (literal, behind) = from.split_at(string_length(from));
        let operator = behind.trim_start().strip_prefix('%').filter(|operand| !operand.starts_with('}'));
        let operand = operator.map(str::trim_start).map(|operand| operand.split_at(operand_length(operand)));
        match operand {
            Some((operand, behind)) if !operand.is_empty() => {
                out.push_str(&format!("({literal}|{PERCENT}("));
                rewrite_percent(out, operand);
                out.push_str("))");
                rest = behind;
            }
            _ => {
                out.push_str(literal);
                rest = behind;
            }
        }
    }
    out.push_str(rest);
}

/// The length of the string literal at the beginning of `text`.
fn string_length(text: &str) -> usize {
    let quote = text.as_bytes().first();
    let mut at = 1;
    while let Some(byte) = text.as_bytes().get(at) {
        match byte {
            b'\\' => at += 1,
            byte if Some(byte) == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The length of the operand at the beginning of `text`: a literal, a name or something in brackets, with what is
/// looked up, called or filtered on it.
fn operand_length(text: &str) -> usize {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let word_length = |text: &str| text.bytes().take_while(|&byte| is_word(byte)).count();
    let from = |at: usize| text.get(at..).unwrap_or("");
    let mut at = usize::from(text.starts_with('-'));
    at += match from(at).bytes().next() {
        Some(b'"' | b'\'') => string_length(from(at)),
        Some(b'(' | b'[' | b'{') => bracket_length(from(at)),
        _ => word_length(from(at)),
    };
    loop {
        let spaces = from(at).len() - from(at).trim_start().len();
        let next = from(at + spaces);
        let length = match next.bytes().next() {
            Some(b'(' | b'[') => bracket_length(next),
            Some(b'.' | b'|') => {
                let name = next.get(1..).unwrap_or("");
                let gap = name.len() - name.trim_start().len();
                1 + gap + word_length(name.trim_start())
            }
            _ => return at,
        };
        at = (at + spaces + length).min(text.len());
    }
}

/// The length of the bracketed text at the beginning of `text`.
fn bracket_length(text: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(byte) = text.as_bytes().get(at) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' | b'\'' => at += string_length(text.get(at..).unwrap_or("")) - 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            return at;
        }
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

    #[test]
    fn the_percent_operator_on_a_literal_becomes_a_filter() {
        for (source, expected) in [
            ("{{ '%s' % x }}", "{{ ('%s'|F(x)) }}"),
            ("{{ 'a' ~ '%s)' % (a, ')') ~ b }}", "{{ 'a' ~ ('%s)'|F((a, ')'))) ~ b }}"),
            ("{{ \"%d\" %messages[0].n|int + 1 }}", "{{ (\"%d\"|F(messages[0].n|int)) + 1 }}"),
            ("{{ '%s' % ('%d' % -1) }}", "{{ ('%s'|F((('%d'|F(-1))))) }}"),
            ("{% set x = 'a' %}{{ '%' }}{{ 7 % 2 }}", "{% set x = 'a' %}{{ '%' }}{{ 7 % 2 }}"),
            (
                "'%s' % x {# '%s' % x #}{% raw %}'%s' % x{% endraw %}",
                "'%s' % x {# '%s' % x #}{% raw %}'%s' % x{% endraw %}",
            ),
            ("{{ '%s' % ", "{{ '%s' % "),
            ("{{ 'é\\'%s' % é.b( 'c' ) }}", "{{ ('é\\'%s'|F(é.b( 'c' ))) }}"),
        ] {
            assert_eq!(rewrite(source), expected.replace('F', PERCENT));
        }
    }
}
