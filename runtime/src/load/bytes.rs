//! Bytes of a model that several owners read: a part of a mapped file, of the program itself, or of memory that was
//! filled once.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Start of owned bytes: a cache line, and the width of the widest vector register.
const OWNED_ALIGNMENT: usize = 64;

/// Read-only bytes. Cloning and slicing share the storage.
#[derive(Clone)]
pub struct Bytes {
    storage: Arc<Storage>,
    range: Range<usize>,
}

enum Storage {
    Mapped(memmap2::Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    /// A whole mapped file.
    pub(crate) fn mapped(map: memmap2::Mmap) -> Bytes {
        let range = 0..map.len();
        Bytes { storage: Arc::new(Storage::Mapped(map)), range }
    }

    /// Bytes that are part of the program.
    pub(crate) fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes { storage: Arc::new(Storage::Static(bytes)), range: 0..bytes.len() }
    }

    /// Takes over a vector, whose alignment is whatever it is.
    pub(crate) fn from_vec(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { storage: Arc::new(Storage::Owned(bytes)), range }
    }

    /// `len` new bytes that start at a multiple of 64, zero until `fill` has written them.
    pub(crate) fn build<E>(len: usize, fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
        let mut bytes = vec![0; len.saturating_add(OWNED_ALIGNMENT - 1)];
        let start = bytes.as_ptr().align_offset(OWNED_ALIGNMENT);
        let range = start..start + len;
        fill(&mut bytes[range.clone()])?;
        Ok(Bytes { storage: Arc::new(Storage::Owned(bytes)), range })
    }

    /// A part of these bytes; none if they end before it.
    pub(crate) fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let range = self.range.start + range.start..self.range.start + range.end;
        Some(Bytes { storage: Arc::clone(&self.storage), range })
    }

    /// Lets go of the memory of a part of a mapped file: bytes that are asked for again are read again. Others keep
    /// what they have.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let (Storage::Mapped(map), Some(part)) = (&*self.storage, self.slice(range)) {
            // SAFETY: the map is read-only and shared with its file (`files::map` makes no other), so it has no bytes
            // of its own that could be lost: a page that is dropped is mapped again from the file, unchanged. The
            // range is a slice of the map, which `slice` has checked.
            let advised = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, part.range.start, part.range.len())
            };
            // Advice that is not taken costs memory, nothing else.
            let _ = advised;
        }
        #[cfg(not(unix))]
        let _ = range;
    }

    /// These bytes, copied only if they do not start at a multiple of `alignment` (at most 64).
    pub(crate) fn aligned(&self, alignment: usize) -> Bytes {
        if (self.as_ptr() as usize).is_multiple_of(alignment) {
            return self.clone();
        }
        let copied = Bytes::build(self.len(), |copy| {
            copy.copy_from_slice(self);
            Ok::<(), std::convert::Infallible>(())
        });
        match copied {
            Ok(bytes) => bytes,
            Err(never) => match never {},
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.storage {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
            Storage::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_share_and_stay_inside() {
        let bytes = Bytes::from_vec((0..10).collect());
        let part = bytes.slice(2..6).unwrap();
        assert_eq!(&*part, [2, 3, 4, 5]);
        assert_eq!(&*part.slice(1..2).unwrap(), [3]);
        assert!(part.slice(0..5).is_none(), "a slice must not reach beyond the part it is taken from");
        assert!(part.slice(Range { start: 3, end: 2 }).is_none());
    }

    #[test]
    fn misaligned_bytes_are_copied_to_an_aligned_place() {
        let sevens = |bytes: &mut [u8]| {
            bytes.fill(7);
            Ok::<(), ()>(())
        };
        let bytes = Bytes::build(65, sevens).unwrap();
        assert_eq!(bytes.as_ptr() as usize % 64, 0);
        let odd = bytes.slice(1..65).unwrap();
        let aligned = odd.aligned(64);
        assert_eq!(aligned.as_ptr() as usize % 64, 0);
        assert_eq!(*aligned, *odd);
        assert_eq!(bytes.aligned(64).as_ptr(), bytes.as_ptr(), "aligned bytes are not copied");
    }
}
