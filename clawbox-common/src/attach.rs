//! Cgroups that somebody else has made and the agent governs: which new ones it wants to be asked
//! about before anything runs in them, and how their processes get identities.

/// Bytes of a selector's text; a longer one is cut, and then means more than it says.
pub const SELECTOR_TEXT: usize = 127;

/// What is known of a cgroup: the sandbox that it is; see [`PENDING`] and [`NOT_ATTACHED`].
pub type Attached = u64;

/// The sandbox of cgroups that the agent has not looked at yet. It has no policy, so that everything
/// is denied in it.
pub const PENDING: u32 = 0;

/// The number under which programs stand that start others in a cgroup: until one of those is started,
/// nobody in it is governed. No sandbox has it.
pub const STARTERS: u32 = 0;

/// Levels of the hierarchy that are looked at for sandboxes. systemd and the container engines have six at
/// most; what is deeper cannot be attached itself, and is a part of what is above it.
pub const LEVELS: usize = 16;

/// Neither the cgroup nor one above it is a sandbox.
pub const NOT_ATTACHED: Attached = u64::MAX;

/// What the text of a selector is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The path of a cgroup below the root of the hierarchy, beginning with `/`.
    Path = 1,
    /// The name of a cgroup.
    Name = 2,
}

/// How the path or the name of a cgroup may begin, for the agent to be asked. A key of a trie: what it
/// counts of bits are `compared` and the text without the zeros behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector {
    /// A [`Compared`].
    pub compared: u8,
    /// The text; zeros behind it.
    pub text: [u8; SELECTOR_TEXT],
}

/// What stands with a selector: the agent is asked about what begins like it.
pub const ASKED: u32 = 1;

/// What stands with a selector: the agent is not, although a shorter one would have it asked.
pub const SPARED: u32 = 0;

/// Bits of a whole [`Selector`].
pub const SELECTOR_BITS: u32 = 8 * size_of::<Selector>() as u32;

impl Selector {
    /// What begins like this text, and the bits that count.
    #[must_use]
    pub fn beginning(compared: Compared, text: &str) -> (Self, u32) {
        let mut selector = Self { compared: compared as u8, text: [0; SELECTOR_TEXT] };
        let mut bits = 8;
        for (to, from) in selector.text.iter_mut().zip(text.bytes()) {
            *to = from;
            bits += 8;
        }
        (selector, bits)
    }
}

/// A walk through all processes of the host: for which sandbox, and what came of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Walk {
    /// Who is in its cgroup and nobody gets an identity in it. [`PENDING`]: who is in a cgroup that is
    /// none any more loses what it got there.
    pub sandbox: u32,
    /// 1 for everybody, also who was there before; 0 for those alone that were held when they were started,
    /// and not for who is about to start others.
    pub is_for_all: u32,
    /// Processes that got an identity by the program that they run.
    pub identified: u32,
    /// Processes whose program could not be told: they are denied everything until they start one.
    pub unverified: u32,
    /// Processes that are nobody's from now on.
    pub released: u32,
    /// Processes for which there was no room.
    pub left_out: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_counts_the_bits_of_what_it_compares_and_cuts_what_does_not_fit() {
        let (selector, bits) = Selector::beginning(Compared::Name, "abc");
        assert_eq!((selector.compared, &selector.text[..4], bits), (2, &b"abc\0"[..], 32));
        let (_, bits) = Selector::beginning(Compared::Path, &"x".repeat(500));
        assert_eq!(bits, SELECTOR_BITS);
    }
}
