//! The `clawbox` command: parse, dispatch, print an error once, exit with a documented status.

fn main() {}
