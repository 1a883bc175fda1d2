//! How much memory this process may still take: the least of what the machine, its cgroup and its own limits leave.
//!
//! Everything is read from /proc and /sys; where these are missing, nothing is known and nothing is refused.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes that this process may still take; none if the system does not say.
///
/// `mapped` bytes are those of files that are already mapped and that the caller counts as memory still to be taken:
/// the limits of the process have them in their books already.
pub fn available_memory(mapped: u64) -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let meminfo = read("/proc/meminfo");
    let machine = meminfo.as_deref().and_then(|text| kilobytes(text, "MemAvailable:"));
    let limits = match (read("/proc/self/limits"), read("/proc/self/status")) {
        (Some(limits), Some(status)) => limits_left(&limits, &status, mapped),
        _ => None,
    };
    let cgroup = read("/proc/self/cgroup").and_then(|text| cgroup_left(&text, Path::new("/sys/fs/cgroup")));
    [machine, limits, cgroup].into_iter().flatten().min()
}

/// The value of a line like `MemAvailable:  123 kB`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What `ulimit -v` and `ulimit -d` leave, by the texts of /proc/self/limits and /proc/self/status.
fn limits_left(limits: &str, status: &str, mapped: u64) -> Option<u64> {
    let left = |name: &str, used: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        // "unlimited" is not a number.
        let limit = line.split_whitespace().next()?.parse::<u64>().ok()?;
        let used = kilobytes(status, used)?.saturating_sub(mapped);
        Some(limit.saturating_sub(used))
    };
    [left("Max address space", "VmSize:"), left("Max data size", "VmData:")].into_iter().flatten().min()
}

/// What the memory controllers above this process leave, by the text of /proc/self/cgroup: version 2 has the line
/// `0::PATH`, version 1 a line `N:CONTROLLERS:PATH` with `memory` among its controllers.
fn cgroup_left(text: &str, root: &Path) -> Option<u64> {
    let mut least = None;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, version) = match controllers {
            "" => (root.to_owned(), &VERSION_2),
            _ if controllers.split(',').any(|controller| controller == "memory") => (root.join("memory"), &VERSION_1),
            _ => continue,
        };
        // In a container the path may be that of the host, which is not there: then only the root is.
        let mut folder: PathBuf = root.join(path.trim_start_matches('/'));
        loop {
            least = least.into_iter().chain(version.left(&folder)).min();
            if folder == root || !folder.pop() {
                break;
            }
        }
    }
    least
}

/// How a version of cgroups names its files, and the pages of files in memory.stat.
struct Version {
    limit: &'static str,
    usage: &'static str,
    file_pages: [&'static str; 2],
}

const VERSION_2: Version =
    Version { limit: "memory.max", usage: "memory.current", file_pages: ["inactive_file ", "active_file "] };

const VERSION_1: Version = Version {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    file_pages: ["total_inactive_file ", "total_active_file "],
};

impl Version {
    /// Limit minus usage of one group. Pages of files count as free: the kernel drops them first.
    fn left(&self, folder: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        // "max" is not a number.
        let limit = read(self.limit)?.trim().parse::<u64>().ok()?;
        let usage = read(self.usage)?.trim().parse::<u64>().ok()?;
        let stat = read("memory.stat").unwrap_or_default();
        let pages = self.file_pages.iter().filter_map(|key| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().parse::<u64>().ok()
        });
        Some(limit.saturating_sub(usage.saturating_sub(pages.sum())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_the_process_count_what_it_has_taken() {
        let limits = |space: &str, data: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax data size  {data}  unlimited  bytes\nMax address space  {space}  unlimited  bytes\n"
            )
        };
        let status = "VmPeak:\t  999 kB\nVmSize:\t     100 kB\nVmData:\t      10 kB\n";
        let cases = [
            (limits("unlimited", "unlimited"), 0, None),
            (limits("1024000", "unlimited"), 0, Some(1_024_000 - 102_400)),
            (limits("1024000", "20480"), 0, Some(10_240)),
            (limits("1024000", "unlimited"), 50 * 1024, Some(1_024_000 - 51_200)),
            (limits("10", "unlimited"), 0, Some(0)),
        ];
        for (limits, mapped, expected) in cases {
            assert_eq!(limits_left(&limits, status, mapped), expected, "{limits} with {mapped} mapped");
        }
    }

    #[test]
    fn the_tightest_cgroup_counts_without_its_pages_of_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("a/memory.max", "max\n");
        write("a/b/memory.max", "1000\n");
        write("a/b/memory.current", "700\n");
        write("a/b/memory.stat", "anon 1\ninactive_file 100\nactive_file 50\n");
        write("memory/memory.limit_in_bytes", "5000\n");
        write("memory/memory.usage_in_bytes", "4900\n");
        let cases = [
            ("0::/a/b\n", Some(450)),
            ("0::/a\n", None),
            ("0::/\n", None),
            ("5:cpu:/a/b\n4:cpuset,memory:/not/there\n", Some(100)),
            ("0::/a/b/not/there\n4:memory:/\n", Some(100)),
            ("broken", None),
        ];
        for (text, expected) in cases {
            assert_eq!(cgroup_left(text, root.path()), expected, "{text}");
        }
    }

    #[test]
    fn this_machine_has_memory() {
        if cfg!(target_os = "linux") {
            assert!(available_memory(0).is_some_and(|bytes| bytes > 1 << 20), "{:?}", available_memory(0));
        }
    }
}
