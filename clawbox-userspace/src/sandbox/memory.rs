//! What a start takes and nothing after it needs: given back to the host, where agents wait for months.

use std::fs;

use nix::libc;

/// Gives back to the host what was freed and is kept for later.
pub(crate) fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc locks its arenas itself.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives back what is free, after a load the 20 MiB that reading the kernel's types took, and the pages of the
/// program, of which a daemon at rest needs few. What is used again costs a fault for each page.
pub fn give_back() {
    trim();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(code) {
        // SAFETY: a mapping of this process's, of a file, that nobody can have written to: what is used
        // again is read from the file again.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Where the line of a mapping is, and how long, if it is of a file, private, and only executed: what was
/// written to a private mapping, as relocations are, is nowhere else.
fn code(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, rights, inode) = (fields.next()?, fields.next()?, fields.nth(2)?);
    if rights != "r-xp" || inode == "0" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_that_stands_in_a_file_is_given_back_and_goes_on_running() {
        let code_of = "55d000-55e000 r-xp 00001000 08:01 77   /usr/bin/clawbox";
        assert_eq!(code(code_of), Some((0x55_d000, 0x1000)));
        for other in [
            "55d000-55e000 r--p 00001000 08:01 77   /usr/bin/clawbox",
            "55d000-55e000 rw-p 00001000 08:01 77   /usr/bin/clawbox",
            "7ffe0000-7ffe1000 r-xp 00000000 00:00 0   [vdso]",
            "",
        ] {
            assert_eq!(code(other), None, "{other}");
        }
        give_back();
        assert_eq!(code(code_of).map(|(_, length)| length), Some(0x1000));
    }
}
