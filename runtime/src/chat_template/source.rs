//! Rewrites a template where Jinja2 has syntax that the engine has not:
//! - `{% generation %}` … `{% endgeneration %}` marks what an assistant wrote, for training. For rendering it is a
//!   scope that shows its body: `{% with %}`.
//! - `'…' % value` formats a text; the engine's `%` is for numbers only. With a literal on the left it becomes a filter.
//! - `a + b` of lists is lazy in the engine and not paid with fuel; the right side passes through a filter that pays.
//! - A loop over none fails, as in Python.
//! - Line ends are all `\n`, and the one behind `{% raw %}` stays.

use std::collections::HashSet;

use super::filters::{ADDEND, ATTRIBUTE, LOOP_VALUES, PERCENT};

/// The engine's parser takes time with the square of a chain of operators.
const LONGEST_TAG: usize = 8 << 10;
/// The sum of these squares; real templates stay below a hundredth of it.
const MOST_PARSE_WORK: usize = 1 << 27;
/// Operands nested deeper are left as they are; the engine's parser refuses what is nested much deeper.
const DEEPEST_OPERAND: usize = 50;

/// Rewrites these, and nothing inside comments, raw blocks or strings.
///
/// The error says that the template needs other files, or more `**` than the parser can take.
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    const MOST_POWERS: usize = 200;
    if source.matches("**").count() > MOST_POWERS {
        return Err(format!("the template has more than {MOST_POWERS} times `**`"));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let escape = namespaces_escape(&source);
    let mut parse_work = 0;
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
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
                ("raw", _) => {
                    let (tag, behind) = from.split_at(length.min(from.len()));
                    out.push_str(tag.strip_suffix("%}").unwrap_or(tag));
                    if tag.ends_with("%}") {
                        out.push_str(if tag.ends_with("-%}") || tag.ends_with("+%}") { "%}" } else { "+%}" });
                    }
                    let (raw, behind) = behind.split_at(raw_length(behind).min(behind.len()));
                    out.push_str(raw);
                    rest = behind;
                    continue;
                }
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
                (word @ ("include" | "import" | "from" | "extends"), _) => {
                    let tag = from.get(..length).unwrap_or("");
                    return Err(format!("a chat template cannot use other files ({word}): {tag}"));
                }
                _ => length,
            }
        } else {
            1
        };
        let (tag, behind) = from.split_at(length.min(from.len()));
        if tag.starts_with("{{") || tag.starts_with("{%") {
            let code = code_length(tag);
            parse_work += code * code;
            if code > LONGEST_TAG || parse_work > MOST_PARSE_WORK {
                return Err(format!(
                    "a tag of the template has {code} bytes outside of strings, expected at most {LONGEST_TAG}, and few that long"
                ));
            }
            let attribute = escape.then(|| rewrite_attribute(tag)).flatten();
            let rewritten = attribute.or_else(|| rewrite_loop(tag));
            rewrite_operators(&mut out, rewritten.as_deref().unwrap_or(tag), 0);
        } else {
            out.push_str(tag);
        }
        rest = behind;
    }
    out.push_str(rest);
    Ok(out)
}

/// The length of the tag at the beginning of `text`, over strings that contain its end.
fn tag_length(text: &str, end: &str) -> usize {
    let bytes = text.as_bytes();
    let mut quote = None;
    let mut depth = 0usize;
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        match quote {
            Some(_) if byte == b'\\' => at += 1,
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            None if byte == b'"' || byte == b'\'' => quote = Some(byte),
            None if depth == 0 && bytes.get(at..).is_some_and(|rest| rest.starts_with(end.as_bytes())) => {
                return at + end.len();
            }
            None if byte == b'{' => depth += 1,
            None if byte == b'}' => depth = depth.saturating_sub(1),
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

/// Appends a tag with its operators rewritten.
fn rewrite_operators(out: &mut String, tag: &str, depth: usize) {
    if depth > DEEPEST_OPERAND {
        out.push_str(tag);
        return;
    }
    // The sign of `{%+` and `+%}` is no operator.
    let signed = ["{%+", "{%-", "{{+", "{{-"].iter().any(|opening| tag.starts_with(opening));
    let opened = signed || tag.starts_with("{%") || tag.starts_with("{{");
    let (opening, mut rest) = tag.split_at(if opened { 2 + usize::from(signed) } else { 0 });
    out.push_str(opening);
    while let Some(at) = rest.find(['"', '\'', '+']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if from.starts_with('+') {
            let (operator, behind) = from.split_at(from.len() - from.trim_start_matches('+').trim_start().len());
            let (operand, behind) = behind.split_at(operand_length(behind));
            out.push_str(operator);
            rewrite_operators(out, operand, depth + 1);
            if operand.starts_with(|c: char| c.is_alphabetic() || "_([{".contains(c)) {
                out.push('|');
                out.push_str(ADDEND);
            }
            rest = behind;
            continue;
        }
        let (literal, behind) = from.split_at(string_length(from));
        let operator = behind.trim_start().strip_prefix('%').filter(|operand| !operand.starts_with('}'));
        let operand = operator.map(str::trim_start).map(|operand| operand.split_at(operand_length(operand)));
        match operand {
            Some((operand, behind)) if !operand.is_empty() => {
                out.push_str(&format!("({literal}|{PERCENT}("));
                rewrite_operators(out, operand, depth + 1);
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

/// `{% set target.attribute = value %}` with the value passed through a filter that refuses one that holds a
/// namespace: a namespace inside itself could not be printed. None for any other tag.
fn rewrite_attribute(tag: &str) -> Option<String> {
    let (word, at) = first_word(tag);
    let inside = tag.strip_suffix("%}")?;
    let sign = inside.ends_with(['-', '+']).then(|| inside.get(inside.len() - 1..)).flatten().unwrap_or("");
    let inside = inside.strip_suffix(sign)?;
    let (target, value) = inside.get(at + word.len()..)?.split_once('=')?;
    let is_attribute =
        word == "set" && target.contains('.') && !target.contains(['"', '\'', '(']) && !value.starts_with('=');
    is_attribute.then(|| format!("{}{target}=({value})|{ATTRIBUTE}{sign}%}}", tag.get(..at + word.len()).unwrap_or("")))
}

/// `{% for x in values … %}` with the values passed through a filter that refuses none, over which Python cannot
/// loop. None for any other tag.
fn rewrite_loop(tag: &str) -> Option<String> {
    let (word, at) = first_word(tag);
    if word != "for" {
        return None;
    }
    let start = outer_word(tag, at, "in")? + "in".len();
    let inside = tag.strip_suffix("%}")?.trim_end_matches(['-', '+']).trim_end();
    let ends = [outer_word(tag, start, "if"), outer_word(tag, start, "recursive"), Some(inside.len())];
    let end = ends.into_iter().flatten().min()?;
    let values = tag.get(start..end).filter(|values| !values.trim().is_empty())?;
    Some(format!("{} ({})|{LOOP_VALUES} {}", tag.get(..start)?, values.trim(), tag.get(end..)?))
}

/// Where `word` stands as a word behind `from`, outside of strings and brackets.
fn outer_word(tag: &str, from: usize, word: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = from;
    while let Some(rest) = tag.get(at..) {
        let c = rest.chars().next()?;
        let length = match c {
            '"' | '\'' => string_length(rest),
            '(' | '[' | '{' => bracket_length(rest),
            c if is_word(c) => {
                let found = rest.get(..rest.find(|c| !is_word(c)).unwrap_or(rest.len())).unwrap_or("");
                // Not a name behind a dot or a bar.
                if found == word && !tag.get(..at).is_some_and(|before| before.trim_end().ends_with(['.', '|'])) {
                    return Some(at);
                }
                found.len()
            }
            c => c.len_utf8(),
        };
        at += length.max(1);
    }
    None
}

/// Whether a namespace may come to stand anywhere but in the variable that it is made for: then assignments to its
/// attributes are checked.
fn namespaces_escape(source: &str) -> bool {
    let words: Vec<(usize, &str)> = identifiers(source).collect();
    let before = |at: usize| source.get(..at).unwrap_or("").trim_end();
    let mut names = HashSet::new();
    for (index, (at, word)) in words.iter().enumerate() {
        if *word != "namespace" {
            continue;
        }
        // `set name = namespace(…)` and nothing else.
        let set = index.checked_sub(2).and_then(|set| words.get(set)).is_some_and(|(_, word)| *word == "set");
        match index.checked_sub(1).and_then(|name| words.get(name)) {
            Some((_, name)) if set && before(*at).ends_with('=') => drop(names.insert(*name)),
            _ => return true,
        }
    }
    words.iter().any(|(at, word)| {
        let behind = source.get(at + word.len()..).unwrap_or("").trim_start();
        let is_made = behind.starts_with('=') && !behind.starts_with("==");
        names.contains(word) && !behind.starts_with(['.', '[']) && !is_made && !before(*at).ends_with('.')
    })
}

/// The identifiers of a source, and what looks like one in its text.
fn identifiers(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = source.get(at..)?;
        let start = at + rest.find(|c: char| c.is_alphanumeric() || c == '_')?;
        let word = source.get(start..)?;
        let length = word.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(word.len());
        at = start + length;
        Some((start, word.get(..length)?))
    })
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

/// The length of a tag without its strings.
fn code_length(tag: &str) -> usize {
    let mut length = 0;
    let mut rest = tag;
    while let Some((before, _)) = rest.split_once(['"', '\'']) {
        length += before.len();
        let literal = rest.get(before.len()..).unwrap_or("");
        rest = literal.get(string_length(literal)..).unwrap_or("");
    }
    length + rest.len()
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
                "{% raw +%}{% generation %}{% endraw %}{% with %}",
            ),
            ("{% generations %}", "{% generations %}"),
            ("{ {% set x = '%}' %}{%generation%}é{", "{ {% set x = '%}' %}{%with%}é{"),
            ("{% raw %}{% generation", "{% raw +%}{% generation"),
            ("{%- raw -%}\r\n{%- endraw -%}\r", "{%- raw -%}\n{%- endraw -%}\n"),
            ("{%", "{%"),
        ] {
            assert_eq!(rewrite(source).as_deref(), Ok(expected));
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
                "'%s' % x {# '%s' % x #}{% raw +%}'%s' % x{% endraw %}",
            ),
            ("{{ '%s' % ", "{{ '%s' % "),
            ("{{ {'a': {'b': 1}} ~ '%s' % x }}", "{{ {'a': {'b': 1}} ~ ('%s'|F(x)) }}"),
            ("{{ 'é\\'%s' % é.b( 'c' ) }}", "{{ ('é\\'%s'|F(é.b( 'c' ))) }}"),
        ] {
            assert_eq!(rewrite(source), Ok(expected.replace('F', PERCENT)));
        }
    }

    #[test]
    fn what_is_added_is_paid_for() {
        for (source, expected) in [
            ("{{ a + b }}", "{{ a + b|A }}"),
            ("{{ a+b.c(d + 1)[0]|trim ~ '+' + 'x' }}", "{{ a+b.c(d + 1)[0]|trim|A ~ '+' + 'x' }}"),
            ("{%+ if a + [b] +%}{%- set x = x + (1, 2) -%}+", "{%+ if a + [b]|A +%}{%- set x = x + (1, 2)|A -%}+"),
            ("{{ a + (b if c + d else e) }}", "{{ a + (b if c + d|A else e)|A }}"),
            ("{{ + }}{{ a + }}", "{{ + }}{{ a + }}"),
        ] {
            assert_eq!(rewrite(source), Ok(expected.replace('A', ADDEND)));
        }
    }

    #[test]
    fn loops_check_their_values() {
        for (tag, expected) in [
            ("{% for x in xs %}", "{% for x in (xs)|L  %}"),
            ("{%- for k, v in d.items() -%}", "{%- for k, v in (d.items())|L  -%}"),
            ("{% for x in a if x in b %}", "{% for x in (a)|L if x in b %}"),
            (
                "{% for x in f('if', [y if y else z]) recursive %}",
                "{% for x in (f('if', [y if y else z]))|L recursive %}",
            ),
            ("{% for x in d.in | select %}", "{% for x in (d.in | select)|L  %}"),
        ] {
            assert_eq!(rewrite_loop(tag), Some(expected.replace('L', LOOP_VALUES)), "{tag}");
        }
        for tag in ["{% if x in y %}", "{% for x in %}", "{% for %}", "{{ x in y }}"] {
            assert_eq!(rewrite_loop(tag), None, "{tag}");
        }
    }

    #[test]
    fn namespaces_are_watched_only_where_they_can_nest() {
        for (source, watched) in [
            ("{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns['a'] }}", false),
            ("{% set ns = namespace() %}{% set ns.a = ns %}", true),
            ("{% set ns = namespace() %}{% set ns.a = [ns] -%}", true),
            ("{% set ns = namespace() %}{{ m(ns) }}", true),
            ("{% set x = [namespace()] %}", true),
            ("{{ namespace().x }}", true),
        ] {
            assert_eq!(namespaces_escape(source), watched, "{source}");
        }
        assert_eq!(
            rewrite_attribute("{%- set ns.a = [ns] -%}"),
            Some(format!("{{%- set ns.a =( [ns] )|{ATTRIBUTE}-%}}"))
        );
        assert_eq!(rewrite_attribute("{% set a = b.c == d %}"), None);
        assert_eq!(rewrite_attribute("{% if a.b == c %}"), None);
    }

    #[test]
    fn other_files_are_refused() {
        for tag in ["{% include 'a' %}", "{%- extends 'a' %}", "{% import 'a' as b %}", "{% from 'a' import b %}"] {
            assert!(rewrite(tag).is_err_and(|problem| problem.contains(tag)), "{tag}");
        }
        assert!(rewrite("{# {% include 'a' %} #}{{ 'include' }}").is_ok());
    }
}
