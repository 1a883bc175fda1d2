//! What a file really is, by its first bytes, when it is something that people mistake for a model.

/// How many bytes of a file [`foreign`] wants to see.
pub(crate) const SNIFFED_BYTES: usize = 512;

/// What is wrong with a file whose first bytes these are, and what to do; none if it may be what its name says.
///
/// A safetensors file begins with the length of its header, which can spell anything, and then `{`; so that is
/// asked first.
pub(crate) fn foreign(head: &[u8]) -> Option<&'static str> {
    if head.get(8) == Some(&b'{') {
        return None;
    }
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let begins_with = |tag: &str| text.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag.as_bytes()));
    if head.starts_with(b"version https://git-lfs") {
        Some("is a Git LFS pointer, not the file itself; fetch it with `git lfs pull` or download it again")
    } else if ["<!doctype", "<html", "<head", "<?xml"].into_iter().any(begins_with) {
        Some("is an HTML page, not the file itself; download it again (the site may have asked for a login)")
    } else if head.starts_with(b"GGUF") {
        Some("is a GGUF file; only safetensors are read, so take the model's original Hugging Face folder")
    } else if head.starts_with(b"PK\x03\x04") {
        Some("is a zip archive, as PyTorch writes its weights; take the model's .safetensors files or convert it")
    } else if matches!(head, [0x80, 2..=5, ..]) {
        Some("is a Python pickle, as PyTorch writes its weights; take the model's .safetensors files or convert it")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_recognised_by_their_first_bytes() {
        let cases: [(&[u8], Option<&str>); 10] = [
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", Some("Git LFS")),
            (b"<!DOCTYPE html><html>", Some("HTML")),
            (b"\xef\xbb\xbf \n<HTML lang=en>", Some("HTML")),
            (b"GGUF\x03\0\0\0", Some("GGUF")),
            (b"PK\x03\x04\0\0\0\0\0\0", Some("zip")),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j", Some("pickle")),
            (b"\x80\x04\x95", Some("pickle")),
            // Header lengths that spell a pickle, a zip archive, GGUF.
            (b"\x80\x02\0\0\0\0\0\0{\"a\"", None),
            (b"GGUF\0\0\0\0{\"a\"", None),
            (b"", None),
        ];
        for (head, expected) in cases {
            let found = foreign(head);
            let right = match expected {
                Some(word) => found.is_some_and(|message| message.contains(word)),
                None => found.is_none(),
            };
            assert!(right, "{:?}: expected {expected:?}, found {found:?}", String::from_utf8_lossy(head));
        }
    }
}
