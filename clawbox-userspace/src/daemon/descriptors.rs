//! Descriptors: the last ones that this process may have are for what runs, so that its names are answered
//! while nothing more can be begun.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::usage;

/// Nothing is begun with fewer left. A question for a name takes one or two at a time, a change of policy
/// one for each file that no sandbox has named yet.
const RESERVED: u64 = 64;

/// A sandbox has six descriptors or more, and each connection that passes through two.
pub fn raise() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!("the number of descriptors stays as it is: {error}");
    }
}

/// Those that are open, and how many may be.
fn open_of() -> (u64, u64) {
    // Where neither is known, `/proc` or more is missing.
    let most = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(most, _)| most);
    (usage::descriptors().unwrap_or(most), most)
}

/// Whether one who has only a question may still ask it. That nothing can be begun is an answer too, and so
/// this goes on for longer.
#[must_use]
pub fn has_room_for_questions() -> bool {
    let (open, most) = open_of();
    open.saturating_add(RESERVED / 2) <= most
}

/// Why nothing more can be begun, if it cannot.
#[must_use]
pub fn too_few() -> Option<String> {
    let (open, most) = open_of();
    (open.saturating_add(RESERVED) > most).then(|| {
        format!(
            "the daemon has {open} of {most} descriptors open, and the last {RESERVED} are for what runs; end \
             a sandbox, or raise `LimitNOFILE` of the daemon's unit and restart it"
        )
    })
}

/// Says it once when they become few, and once when they no longer are.
#[derive(Debug, Default)]
pub struct Descriptors {
    are_few: bool,
}

impl Descriptors {
    /// To be called about once a second.
    pub fn look(&mut self) {
        let why = too_few();
        match (&why, self.are_few) {
            (Some(why), false) => tracing::error!("nothing more is begun: {why}"),
            (None, true) => tracing::info!("there are descriptors again"),
            _ => {}
        }
        self.are_few = why.is_some();
    }
}
