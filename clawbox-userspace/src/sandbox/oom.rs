//! Who is ended when the machine runs out of memory: the sandbox before the agent, whose resolver and
//! trail it needs.

use std::fs;
use std::sync::OnceLock;

/// Where a process says how willingly it is ended, -1000 to 1000; proc(5).
const OWN_SCORE: &str = "/proc/self/oom_score_adj";

/// As sshd and other services that a host does not want to lose; -1000 would be never.
const SPARED: &str = "-900";

/// What it was before.
static BEFORE: OnceLock<String> = OnceLock::new();

/// Has the kernel end nearly everybody else first. Children take it over: to be done when the sandbox's
/// first process has been made, or by who does not make them itself. Verdicts do not depend on it, and a
/// container may lack the right to (CAP_SYS_RESOURCE).
pub fn spare() {
    let before = fs::read_to_string(OWN_SCORE).unwrap_or_else(|_| "0".to_owned());
    let _ = BEFORE.set(before);
    if let Err(error) = fs::write(OWN_SCORE, SPARED) {
        tracing::debug!("clawbox is ended as anything else where memory is short: {error}");
    }
}

/// From now on as before: this process makes sandboxes' processes itself, and none of them is to be spared.
pub fn share() {
    let Some(before) = BEFORE.get() else { return };
    if let Err(error) = fs::write(OWN_SCORE, before) {
        tracing::error!("where memory is short, sandboxes are spared as the agent is: {error}");
    }
}
