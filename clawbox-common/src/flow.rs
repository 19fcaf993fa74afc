//! Allowed connects and sends that are like one that was told already: they are counted, and the counts are
//! told now and then. Shared by the kernel programs, which count, and the agent, which tells.

use crate::address::Address;
use crate::subject::FileId;

/// Of what was counted for a sandbox: which of its two marks says so. Each is 1 before the first entry is made.
pub const COUNTED_FLOWS: usize = 0;
/// The same of uses of files; see [`crate::file::Tally`].
pub const COUNTED_USES: usize = 1;

/// What has to be equal for two to be alike: all that a record tells, but who in particular and when.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey {
    /// [`crate::subject::Subject::kind`]; never zero.
    pub subject: u64,
    /// See [`crate::event::NetworkEvent::asked`].
    pub asked: Address,
    /// See [`crate::event::NetworkEvent::real`].
    pub real: Address,
    /// Policy generation that decided.
    pub policy: u32,
    /// See [`crate::event::Header::uid`].
    pub uid: u32,
    /// Number of the span of time in which they are counted together.
    pub span: u32,
    /// Port asked, host byte order.
    pub port: u16,
    /// [`crate::rule::TCP`], [`crate::rule::UDP`] or [`crate::rule::ICMP`].
    pub transport: u8,
    /// A [`crate::event::Kind`] as a number.
    pub kind: u8,
    /// A [`crate::verdict::Reason`] as a number.
    pub reason: u8,
    /// A [`crate::decide::Route`] as a number.
    pub route: u8,
    /// Always zero.
    pub zero: [u8; 6],
}

/// What is known of them, and how many there were beside the first, which was told by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flow {
    /// How many more.
    pub again: u64,
    /// The subject's program.
    pub exe: FileId,
    /// See [`crate::decide::Decision::matched`].
    pub matched: u64,
    /// See [`crate::decide::Decision::matched_word`].
    pub matched_word: u32,
    /// Whose.
    pub sandbox: u32,
    /// Host pattern of the deciding rule.
    pub host: u32,
    /// Number of the name behind a synthetic address.
    pub name: u32,
    /// See [`crate::event::Header::is_script`].
    pub is_script: u32,
    /// Always zero.
    pub zero: u32,
}
