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
    let maps = fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in unwritten(&maps) {
        // SAFETY: a mapping of this process's, of a file, that nobody can write to and none of whose pages
        // was ever written: what is used again is read from the file again.
        unsafe {
            libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED);
        }
    }
}

/// Where the mappings are, and how long, that are private, of a file and not writable, and of which no page was
/// written before: what was, as relocations are, is nowhere else. As `/proc/PID/smaps` has them, proc(5).
fn unwritten(maps: &str) -> Vec<(usize, usize)> {
    let (mut found, mut at) = (Vec::new(), None);
    for line in maps.lines() {
        match line.strip_prefix("Anonymous:") {
            Some(size) if size.trim() == "0 kB" => found.extend(at.take()),
            Some(_) => at = None,
            None => at = mapping(line).unwrap_or(at),
        }
    }
    found
}

/// Of the first line of a mapping, where it is, if it can be one of those; `None` of any other line.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    let (rights, inode) = (fields.next()?, fields.nth(2)?);
    let may_be = matches!(rights, "r-xp" | "r--p") && inode != "0";
    Some(may_be.then_some((start, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_in_a_file_is_given_back_and_goes_on_being_there() {
        let mapping = |line: &str, anonymous: u32| {
            format!(
                "{line}\nSize: 4 kB\nPrivate_Dirty: 0 kB\nAnonymous:   {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let code = "55d000-55e000 r-xp 00001000 08:01 77   /usr/bin/clawbox";
        let constants = "55c000-55d000 r--p 00000000 08:01 77   /usr/bin/clawbox";
        for line in [code, constants] {
            let (start, _) = line.split_once('-').unwrap();
            let start = usize::from_str_radix(start, 16).unwrap();
            assert_eq!(unwritten(&mapping(line, 0)), [(start, 0x1000)]);
            // Relocations, or a debugger's breakpoints.
            assert_eq!(unwritten(&mapping(line, 4)), []);
        }
        for other in [
            "55d000-55e000 rw-p 00001000 08:01 77   /usr/bin/clawbox",
            "55d000-55e000 r--s 00001000 00:0d 77   anon_inode:bpf-map",
            "7ffe0000-7ffe1000 r-xp 00000000 00:00 0   [vdso]",
            "",
        ] {
            assert_eq!(unwritten(&mapping(other, 0)), [], "{other}");
        }
        let both = format!("{}{}", mapping(code, 4), mapping(constants, 0));
        assert_eq!(unwritten(&both), [(0x55_c000, 0x1000)]);
        let own = unwritten(&fs::read_to_string("/proc/self/smaps").unwrap());
        assert!(own.len() > 1, "{own:?}");
        give_back();
        assert_eq!(unwritten(&mapping(code, 0)).len(), 1);
    }
}
