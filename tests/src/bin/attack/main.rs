//! What a sandboxed process tries, by system call: `attack [wrapper] step…`. Each step prints one
//! line of JSON with its outcome: `ok`, or the name of the errno that the kernel gave.

mod dial;
mod process;
mod question;
mod sockets;
mod steps;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Its own name may be no text.
    let arguments = std::env::args_os().skip(1);
    let arguments: Vec<String> = arguments.filter_map(|word| word.into_string().ok()).collect();
    match process::run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attack: {error:#}");
            ExitCode::from(70)
        }
    }
}
