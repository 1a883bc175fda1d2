//! The encoding pipeline: added tokens are cut out, the text between is normalized, split by the pre-tokenizer, and
//! each piece goes through the model; then the post-processor adds its tokens.
//!
//! The steps are the library's own; they are called one by one here for two reasons. In a chat, added tokens that
//! stand in a user's words must not be cut out. And the library's regular expression engine gives up on very long
//! runs (a lookahead behind a million spaces) without telling: the rest of the text then stays in one piece, whose
//! ids are wrong. So long runs of one character are split by a shorter stand-in, and other long pieces are checked.

use std::ops::Range;

use serde_json::Value;
use tokenizers::normalizer::Range as Of;
use tokenizers::{
    AddedToken, AddedVocabulary, Encoding, Model, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential,
    OffsetType, PreTokenizedString, PreTokenizer, Token,
};

type Result<T> = std::result::Result<T, String>;

/// A run of one character from here on is split by a shorter stand-in. The engine's limit is a million steps.
const LONG_RUN: usize = 50_000;
/// The length of the stand-in: longer than any counted repetition of a sensible pattern.
const STAND_IN: usize = 1_000;
/// A piece from here on is checked, in windows.
const LONG_PIECE: usize = 100_000;
const WINDOW: usize = 10_000;

/// What encoding needs to know about a tokenizer beside the library's parts.
pub(super) struct Plan {
    /// The added tokens that are matched before normalization.
    raw: AddedVocabulary,
    /// The added tokens that are matched after normalization, by their normalized text.
    normalized: AddedVocabulary,
    /// Their ids, by that text.
    normalized_ids: Vec<(String, u32)>,
    /// Whether a pattern of the pre-tokenizer needs the engine that can give up.
    may_give_up: bool,
    /// The same of the normalizer, where nothing can be checked.
    normalizer_may_give_up: bool,
    /// Whether the pre-tokenizer treats the beginning of the text in another way than the rest.
    looks_at_beginning: bool,
}

impl Plan {
    pub(super) fn new(core: &tokenizers::Tokenizer) -> Result<Plan> {
        let model = core.get_model();
        let normalizer = core.get_normalizer();
        let mut raw_tokens = Vec::new();
        let mut normalized_tokens = Vec::new();
        let mut normalized_ids = Vec::new();
        for (&id, token) in core.get_added_vocabulary().get_added_tokens_decoder() {
            if token.normalized {
                let mut content = NormalizedString::from(token.content.as_str());
                normalize(normalizer, &mut content)?;
                normalized_ids.push((content.get().to_owned(), id));
                normalized_tokens.push(AddedToken {
                    content: content.get().to_owned(),
                    normalized: false,
                    ..token.clone()
                });
            } else {
                raw_tokens.push(token.clone());
            }
        }
        let vocabulary = |tokens: Vec<AddedToken>| -> Result<AddedVocabulary> {
            let mut vocabulary = AddedVocabulary::new();
            vocabulary.add_tokens(tokens, model, None::<&NormalizerWrapper>).map_err(|error| error.to_string())?;
            Ok(vocabulary)
        };
        let json = |part: serde_json::Result<Value>| part.map_err(|error| error.to_string());
        let pre_tokenizer = json(serde_json::to_value(core.get_pre_tokenizer()))?;
        Ok(Plan {
            raw: vocabulary(raw_tokens)?,
            normalized: vocabulary(normalized_tokens)?,
            normalized_ids,
            may_give_up: has_backtracking_pattern(&pre_tokenizer),
            normalizer_may_give_up: has_backtracking_pattern(&json(serde_json::to_value(normalizer))?),
            looks_at_beginning: pre_tokenizer.to_string().contains(r#""prepend_scheme":"first""#),
        })
    }
}

/// Whether a pattern in this part of a tokenizer.json needs backtracking: lookaround, atomic groups, references.
fn has_backtracking_pattern(part: &Value) -> bool {
    match part {
        Value::Array(parts) => parts.iter().any(has_backtracking_pattern),
        Value::Object(fields) => fields.iter().any(|(key, value)| match (key.as_str(), value) {
            ("Regex", Value::String(pattern)) => {
                ["(?=", "(?!", "(?<", "(?>", "++", "*+", "?+", "}+", "\\G", "\\K", "(?("]
                    .iter()
                    .any(|mark| pattern.contains(mark))
                    || pattern.as_bytes().windows(2).any(|w| matches!(w, [b'\\', b'1'..=b'9' | b'k']))
            }
            // The GPT-2 pattern, which ends with a lookahead.
            ("use_regex", Value::Bool(used)) => *used && fields.get("type").is_some_and(|t| t == "ByteLevel"),
            (_, value) => has_backtracking_pattern(value),
        }),
        _ => false,
    }
}

/// Encodes `text`; added tokens that overlap a range of `plain` are left as text.
pub(super) fn encode(
    core: &tokenizers::Tokenizer,
    plan: &Plan,
    text: &str,
    plain: &[Range<usize>],
    add_special: bool,
) -> Result<Vec<u32>> {
    check_normalizer(plan, text)?;
    let cut = if plain.is_empty() {
        core.get_added_vocabulary().extract_and_normalize(core.get_normalizer(), text)
    } else {
        cut_except(core, plan, text, plain)?
    };
    let encoding = tokenize(core, plan, text, cut)?;
    let encoding = core.post_process(encoding, None, add_special).map_err(|error| error.to_string())?;
    Ok(encoding.get_ids().to_vec())
}

/// Encodes `text` without looking for added tokens.
pub(super) fn encode_ordinary(core: &tokenizers::Tokenizer, plan: &Plan, text: &str) -> Result<Vec<u32>> {
    check_normalizer(plan, text)?;
    let cut = ordinary(core, text)?;
    Ok(tokenize(core, plan, text, cut)?.get_ids().to_vec())
}

fn check_normalizer(plan: &Plan, text: &str) -> Result<()> {
    if plan.normalizer_may_give_up && text.len() > LONG_PIECE {
        return Err(format!("this tokenizer's normalizer cannot be trusted with {} bytes in one text", text.len()));
    }
    Ok(())
}

fn normalize(normalizer: Option<&NormalizerWrapper>, text: &mut NormalizedString) -> Result<()> {
    normalizer.map_or(Ok(()), |normalizer| normalizer.normalize(text)).map_err(|error| error.to_string())
}

fn ordinary(core: &tokenizers::Tokenizer, text: &str) -> Result<PreTokenizedString> {
    let mut normalized = NormalizedString::from(text);
    normalize(core.get_normalizer(), &mut normalized)?;
    Ok(PreTokenizedString::from(normalized))
}

/// As the library's `extract_and_normalize`, but added tokens that overlap `plain` stay text.
fn cut_except(
    core: &tokenizers::Tokenizer,
    plan: &Plan,
    text: &str,
    plain: &[Range<usize>],
) -> Result<PreTokenizedString> {
    let overlaps = |found: &Range<usize>| plain.iter().any(|p| p.start < found.end && found.start < p.end);
    let mut cut = PreTokenizedString::from(text);
    let step = |result: tokenizers::Result<()>| result.map_err(|error| error.to_string());
    step(cut.split(|_, whole| {
        // Search between the plain ranges, so that a token behind one is found whatever the range ends with.
        let mut found = Vec::new();
        let mut from = 0;
        for end in
            plain.iter().map(|p| p.start).chain([text.len()]).zip(plain.iter().map(|p| p.end).chain([text.len()]))
        {
            let (until, resume) = end;
            if let Some(between) = text.get(from..until) {
                found.extend(
                    matches(&plan.raw, between)
                        .into_iter()
                        .map(|(range, token)| (range.start + from..range.end + from, token)),
                );
            }
            from = resume;
        }
        let ids = |token: &str| core.token_to_id(token);
        Ok(slices(whole, found, ids))
    }))?;
    step(cut.split(|_, mut part| {
        normalize(core.get_normalizer(), &mut part)?;
        let begin = part.offsets_original().0;
        let found = matches(&plan.normalized, part.get())
            .into_iter()
            .filter(|(range, _)| {
                part.convert_offsets(Of::Normalized(range.clone()))
                    .is_some_and(|original| !overlaps(&(original.start + begin..original.end + begin)))
            })
            .collect();
        let ids = |token: &str| plan.normalized_ids.iter().find(|(text, _)| text == token).map(|(_, id)| *id);
        Ok(slices(part, found, ids))
    }))?;
    Ok(cut)
}

/// The added tokens found in `text`: the range that each takes (with the spaces that it strips), and the token.
fn matches(vocabulary: &AddedVocabulary, text: &str) -> Vec<(Range<usize>, String)> {
    let found = vocabulary.extract_and_normalize(None::<&NormalizerWrapper>, text);
    let known = vocabulary.get_added_tokens_decoder();
    found
        .get_splits(OffsetReferential::Original, OffsetType::Byte)
        .into_iter()
        .filter_map(|(_, offsets, tokens)| {
            let token = known.get(&tokens.as_ref()?.first()?.id)?;
            Some((offsets.0..offsets.1, token.content.clone()))
        })
        .collect()
}

/// Cuts `whole` at the found tokens.
fn slices(
    whole: NormalizedString,
    found: Vec<(Range<usize>, String)>,
    id_of: impl Fn(&str) -> Option<u32>,
) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    let end = whole.get().len();
    let mut parts = Vec::new();
    let mut from = 0;
    for (range, token) in found {
        let Some(id) = id_of(&token) else { continue };
        if from < range.start {
            parts.extend(whole.slice(Of::Normalized(from..range.start)).map(|part| (part, None)));
        }
        let length = range.len();
        from = range.end;
        parts.extend(
            whole.slice(Of::Normalized(range)).map(|part| (part, Some(vec![Token::new(id, token, (0, length))]))),
        );
    }
    if from < end {
        parts.extend(whole.slice(Of::Normalized(from..end)).map(|part| (part, None)));
    }
    parts
}

/// Splits what is left of the text and runs the model over the pieces.
fn tokenize(core: &tokenizers::Tokenizer, plan: &Plan, text: &str, mut cut: PreTokenizedString) -> Result<Encoding> {
    if plan.may_give_up && text.len() >= LONG_RUN && has_long_run(text) {
        return tokenize_long_runs(core, plan, &cut);
    }
    pre_tokenize(core, &mut cut)?;
    if plan.may_give_up && text.len() >= LONG_PIECE {
        check_pieces(core, text, &cut)?;
    }
    let model = core.get_model();
    model.tokenize_in_pretokenized(&mut cut, None).map_err(|error| error.to_string())?;
    cut.into_encoding(None, 0, OffsetType::None).map_err(|error| error.to_string())
}

fn pre_tokenize(core: &tokenizers::Tokenizer, cut: &mut PreTokenizedString) -> Result<()> {
    core.get_pre_tokenizer().map_or(Ok(()), |splitter| splitter.pre_tokenize(cut)).map_err(|error| error.to_string())
}

/// Fails if a long piece would be split when looked at in windows: then the engine gave up at its beginning.
fn check_pieces(core: &tokenizers::Tokenizer, text: &str, cut: &PreTokenizedString) -> Result<()> {
    for (_, (start, end), tokens) in cut.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        let piece = text.get(start..end).unwrap_or("");
        if tokens.is_some() || piece.len() < LONG_PIECE {
            continue;
        }
        for window in windows(piece).filter(|window| !window.chars().all(char::is_whitespace)) {
            let mut part = ordinary(core, window)?;
            pre_tokenize(core, &mut part)?;
            if part.get_splits(OffsetReferential::Original, OffsetType::Byte).len() > 1 {
                return Err(format!(
                    "cannot split the text from byte {start} on: a run in it is too long for the tokenizer's pattern"
                ));
            }
        }
    }
    Ok(())
}

/// `text` in parts of about [`WINDOW`] bytes.
fn windows(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = (WINDOW..rest.len()).find(|&end| rest.is_char_boundary(end)).unwrap_or(rest.len());
        let (window, behind) = rest.split_at(end);
        rest = behind;
        (!window.is_empty()).then_some(window)
    })
}

fn has_long_run(text: &str) -> bool {
    runs(text).any(|(_, _, count)| count >= LONG_RUN)
}

/// The runs of equal characters: where each begins, the character, how often it stands there.
fn runs(text: &str) -> impl Iterator<Item = (usize, char, usize)> {
    let mut characters = text.char_indices().peekable();
    std::iter::from_fn(move || {
        let (start, character) = characters.next()?;
        let mut count = 1;
        while characters.next_if(|(_, next)| *next == character).is_some() {
            count += 1;
        }
        Some((start, character, count))
    })
}

/// As [`tokenize`], for a text with very long runs of one character. Each part between added tokens is split twice
/// with the run shortened, once by one character more: if that makes exactly one piece longer by it, then the run's
/// inside lies in this piece whatever the run's length is, and the piece is put back to full length.
fn tokenize_long_runs(core: &tokenizers::Tokenizer, plan: &Plan, cut: &PreTokenizedString) -> Result<Encoding> {
    let mut ids = Vec::new();
    for (index, (part, _, tokens)) in
        cut.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter().enumerate()
    {
        if let Some(tokens) = tokens {
            ids.extend(tokens.iter().map(|token| token.id));
            continue;
        }
        if plan.looks_at_beginning && index > 0 {
            return Err("cannot split a text with so long a run of one character behind a special token".to_owned());
        }
        for piece in split_long_runs(core, part)? {
            let tokens = core.get_model().tokenize(&piece).map_err(|error| error.to_string())?;
            ids.extend(tokens.iter().map(|token| token.id));
        }
    }
    Ok(ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect())
}

/// The pieces of one part, whose text is normalized already.
fn split_long_runs(core: &tokenizers::Tokenizer, part: &str) -> Result<Vec<String>> {
    let pieces = |text: &str| -> Result<Vec<String>> {
        let mut cut = PreTokenizedString::from(text);
        pre_tokenize(core, &mut cut)?;
        let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
        Ok(splits.into_iter().map(|(piece, _, _)| piece.to_owned()).collect())
    };
    let long: Vec<(usize, char, usize)> = runs(part).filter(|(_, _, count)| *count >= LONG_RUN).collect();
    let shortened = |extra_at: usize| -> String {
        let mut text = String::new();
        let mut from = 0;
        for (index, &(start, character, count)) in long.iter().enumerate() {
            text.push_str(part.get(from..start).unwrap_or(""));
            text.extend(std::iter::repeat_n(character, STAND_IN + usize::from(index == extra_at)));
            from = start + count * character.len_utf8();
        }
        text.push_str(part.get(from..).unwrap_or(""));
        text
    };
    let short = shortened(usize::MAX);
    let mut result = pieces(&short)?;
    if long.is_empty() && part.len() >= LONG_PIECE {
        let mut cut = PreTokenizedString::from(part);
        pre_tokenize(core, &mut cut)?;
        check_pieces(core, part, &cut)?;
    }
    let mut places = Vec::new();
    for (index, &(start, character, count)) in long.iter().enumerate() {
        let longer = pieces(&shortened(index))?;
        let place = stretched_piece(&result, &longer);
        let problem = || format!("cannot split a text with {count} times {character:?} in a row (at byte {start})");
        places.push((place.ok_or_else(problem)?, count));
    }
    // From the last to the first, so that places before an insertion stay where they are.
    places.sort_unstable_by_key(|(place, _)| std::cmp::Reverse((place.piece, place.at)));
    for (place, count) in places {
        if let Some(piece) = result.get_mut(place.piece) {
            piece.insert_str(place.at, &place.unit.repeat(count - STAND_IN));
        }
    }
    Ok(result)
}

/// Where a run's inside lies: repetitions of `unit` in a piece, up to the byte `at`.
struct Place {
    piece: usize,
    at: usize,
    unit: String,
}

/// If `longer` is `base` with one piece lengthened by one repetition: where.
fn stretched_piece(base: &[String], longer: &[String]) -> Option<Place> {
    if base.len() != longer.len() {
        return None;
    }
    let mut different = base.iter().zip(longer).enumerate().filter(|(_, (a, b))| a != b);
    let (piece, (short, long)) = different.next()?;
    if different.next().is_some() {
        return None;
    }
    // The first difference is at the end of the run, or behind it where the text goes on as the run does.
    let at: usize = short.chars().zip(long.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let grown = long.len().checked_sub(short.len()).filter(|&grown| grown > 0)?;
    let unit = long.get(at.checked_sub(grown)?..at)?.to_owned();
    let is_run =
        short.get(..at)?.ends_with(&unit.repeat(STAND_IN / 2)) && long.get(at + grown..)? == short.get(at..)?;
    is_run.then_some(Place { piece, at, unit })
}
