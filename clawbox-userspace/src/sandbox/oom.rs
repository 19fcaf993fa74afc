//! Who is ended when the machine runs out of memory: the sandbox before the agent, whose resolver and
//! trail it needs.

use std::fs;

/// Where a process says how willingly it is ended, -1000 to 1000; proc(5).
const OWN_SCORE: &str = "/proc/self/oom_score_adj";

/// As sshd and other services that a host does not want to lose; -1000 would be never.
const SPARED: &str = "-900";

/// Has the kernel end nearly everybody else first. Children take it over: to be done when the sandbox's
/// first process has been made. Verdicts do not depend on it, and a container may lack the right to
/// (CAP_SYS_RESOURCE).
pub fn spare() {
    if let Err(error) = fs::write(OWN_SCORE, SPARED) {
        tracing::debug!("clawbox is ended as anything else where memory is short: {error}");
    }
}
