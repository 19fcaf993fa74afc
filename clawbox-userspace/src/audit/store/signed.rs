//! The host's key, and lines that are signed with it: a JSON object whose last member is the signature of
//! the bytes before it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use nix::libc;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::hex;

/// What stands between a line's object and its signature.
const BEFORE: &str = ",\"sig\":\"";

/// By how many bytes a line is longer than its object.
pub const ADDED: usize = BEFORE.len() + 2 * ed25519_dalek::SIGNATURE_LENGTH + "\"\n".len();

/// A host's key.
pub struct HostKey(SigningKey);

/// What a host's lines are checked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// Lower-case digits of so many bytes, and nothing else.
#[must_use]
pub fn from_hex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let digits = digits.as_bytes();
    let digit = |byte: &u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(&pair[0])? << 4 | digit(&pair[1])?;
    }
    Some(bytes)
}

impl HostKey {
    /// The one of a file, which is made with a new key where it is not there.
    ///
    /// # Errors
    /// It cannot be read or made, or is no key.
    pub fn open(path: &Path) -> io::Result<Self> {
        secret_at(path).map(|seed| Self(SigningKey::from_bytes(&seed)))
    }

    /// The one of a file that is there.
    ///
    /// # Errors
    /// It cannot be read, or is no key.
    pub fn read(path: &Path) -> io::Result<Self> {
        secret_of(path).map(|seed| Self(SigningKey::from_bytes(&seed)))
    }

    /// What everybody may know of it.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// A value as a signed line.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn line<T: Serialize>(&self, value: &T) -> io::Result<String> {
        let text = serde_json::to_string(value)?;
        let signature = hex(&self.0.sign(text.as_bytes()).to_bytes());
        let open = text.strip_suffix('}').ok_or(io::ErrorKind::InvalidInput)?;
        Ok(format!("{open}{BEFORE}{signature}\"}}\n"))
    }
}

/// A secret of a file, which is made where it is not there.
///
/// # Errors
/// It cannot be read or made, or is none.
pub fn secret_at(path: &Path) -> io::Result<[u8; 32]> {
    match secret_of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_secret(path),
        other => other,
    }
}

fn make_secret(path: &Path) -> io::Result<[u8; 32]> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    // Whole or not at all: half a key would be a new host after the next start.
    let new = path.with_extension("key-new");
    let mut file =
        File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(format!("{}\n", hex(&seed)).as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    Ok(seed)
}

/// A secret of a file that is there.
///
/// # Errors
/// It cannot be read, or is none.
pub fn secret_of(path: &Path) -> io::Result<[u8; 32]> {
    let mut text = String::new();
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.take(4096).read_to_string(&mut text)?;
    let seed = text.strip_suffix('\n').and_then(from_hex);
    seed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a key of 64 digits"))
}

impl PublicKey {
    /// From its digits.
    #[must_use]
    pub fn parse(digits: &str) -> Option<Self> {
        VerifyingKey::from_bytes(&from_hex(digits)?).ok().map(Self)
    }

    /// What a signed line says; `None` where it is not as it was signed.
    #[must_use]
    pub fn said<T: DeserializeOwned>(&self, line: &str) -> Option<T> {
        let (open, signature) = line.strip_suffix("\"}\n")?.rsplit_once(BEFORE)?;
        let text = format!("{open}}}");
        let signature = Signature::from_bytes(&from_hex(signature)?);
        self.0.verify_strict(text.as_bytes(), &signature).ok()?;
        serde_json::from_str(&text).ok()
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(&hex(self.0.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_was_signed_and_nothing_when_one_character_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.key");
        let key = HostKey::open(&path).unwrap();
        let line = key.line(&serde_json::json!({ "a": 1, "text": "x\",\"sig\":\"" })).unwrap();
        let public = HostKey::read(&path).unwrap().public();
        let said: serde_json::Value = public.said(&line).unwrap();
        assert_eq!(said["a"], 1);
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut other = line.clone().into_bytes();
                other[at] ^= 1 << bit;
                let other = String::from_utf8_lossy(&other);
                assert!(public.said::<serde_json::Value>(&other).is_none(), "{at} {bit}: {other}");
            }
        }
        assert_eq!(PublicKey::parse(&public.to_string()), Some(public));
    }

    #[test]
    fn a_key_is_its_owner_s_alone_and_a_broken_one_is_not_replaced() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.key");
        HostKey::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "00").unwrap();
        assert!(HostKey::open(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "00");
    }
}
