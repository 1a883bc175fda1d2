//! How many threads a forward pass uses unless it is told: one for each physical core that the process may use. Two
//! threads on one core share its arithmetic and its caches, and would only wait for each other.
//!
//! Affinity and topology are read from /proc and /sys; where these are missing or strange, every logical processor counts.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZero;
use std::path::Path;

/// More processors than any machine has: a list that names one beyond is not believed.
const MOST_PROCESSORS: usize = 1 << 16;

/// Physical cores that this process may use, by its affinity and its cgroup's quota.
pub fn default_threads() -> usize {
    // Knows affinity and quota, but counts logical processors.
    let logical = std::thread::available_parallelism().map_or(1, NonZero::get);
    let status = fs::read_to_string("/proc/self/status").ok();
    let physical = status.and_then(|status| physical_cores(&status, Path::new("/sys/devices/system/cpu")));
    physical.map_or(logical, |physical| physical.min(logical))
}

/// The cores of the processors that the text of /proc/self/status allows: those whose lists of siblings begin with
/// the same processor are one core. None where a file is missing or not understood.
fn physical_cores(status: &str, processors: &Path) -> Option<usize> {
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores = BTreeSet::new();
    for processor in list(allowed)? {
        let path = processors.join(format!("cpu{processor}/topology/thread_siblings_list"));
        let siblings = list(&fs::read_to_string(path).ok()?)?;
        cores.insert(siblings.first().copied()?);
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// The numbers of a list like `0-3,8`, in order.
fn list(text: &str) -> Option<BTreeSet<usize>> {
    let mut numbers = BTreeSet::new();
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        if first > last || last >= MOST_PROCESSORS {
            return None;
        }
        numbers.extend(first..=last);
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_on_one_core_count_once_and_strange_files_not_at_all() {
        // What is allowed, the sibling lists of processors 0, 1, ..., and the cores.
        type Case<'a> = (&'a str, &'a [&'a str], Option<usize>);
        let cases: [Case<'_>; 12] = [
            ("Cpus_allowed_list:\t0-1\n", &["0\n", "1\n"], Some(2)),
            ("Cpus_allowed_list:\t0-3\n", &["0-1\n", "0-1\n", "2-3\n", "2-3\n"], Some(2)),
            ("Cpus_allowed_list:\t0-3\n", &["0,2\n", "1,3\n", "0,2\n", "1,3\n"], Some(2)),
            // A mask that leaves one thread of a core.
            ("Cpus_allowed_list:\t0,2-3\n", &["0-1\n", "0-1\n", "2-3\n", "2-3\n"], Some(2)),
            ("Name:\tinfer\nCpus_allowed_list:\t3\nMems_allowed:\t1\n", &["", "", "", "1,3\n"], Some(1)),
            ("Cpus_allowed_list:\t0-2\n", &["0\n", "1\n"], None),
            ("Cpus_allowed_list:\t0\n", &["no list\n"], None),
            ("Cpus_allowed_list:\t0\n", &["\n"], None),
            ("Cpus_allowed_list:\t1-0\n", &["0\n", "1\n"], None),
            ("Cpus_allowed_list:\t0-18446744073709551615\n", &["0\n"], None),
            ("Cpus_allowed_list:\t\n", &["0\n"], None),
            ("Threads:\t1\n", &["0\n"], None),
        ];
        for (status, siblings, expected) in cases {
            let root = tempfile::tempdir().unwrap();
            for (processor, siblings) in siblings.iter().enumerate() {
                let folder = root.path().join(format!("cpu{processor}/topology"));
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("thread_siblings_list"), siblings).unwrap();
            }
            assert_eq!(physical_cores(status, root.path()), expected, "{status:?} with {siblings:?}");
        }
    }

    #[test]
    fn there_are_never_more_threads_than_logical_processors() {
        let logical = std::thread::available_parallelism().map_or(1, NonZero::get);
        assert!((1..=logical).contains(&default_threads()), "{} of {logical}", default_threads());
    }
}
