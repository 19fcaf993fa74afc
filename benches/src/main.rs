//! Measures what enforcement costs: `cargo xtask bench`.

fn main() {}
