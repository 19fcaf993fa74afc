//! One sandbox: what is applied to its first process, and what keeps it in place afterwards.
//! The kernel hooks judge every action; `launch` is the floor that holds even without them.

pub mod launch;
