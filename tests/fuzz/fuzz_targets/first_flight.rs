//! What a client says first, as it comes in: once something is settled, more bytes do not change it.

#![no_main]

use clawbox::gateway::{LONGEST, read};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let whole = read(bytes);
    // As it would have come in two pieces.
    let first = read(&bytes[..bytes.len() / 2]);
    assert!(first == Ok(None) || first == whole, "{first:?} {whole:?}");
    if let Ok(Some(said)) = whole {
        let host = said.host.unwrap_or_default();
        assert!(host.len() <= 253 && host.bytes().all(|byte| !byte.is_ascii_uppercase()));
    }
    assert!(bytes.len() <= LONGEST || read(bytes) != Ok(None));
});
