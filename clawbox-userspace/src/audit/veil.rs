//! What of records is told as a keyed hash alone, where the configuration says so: the same text has the same
//! hash, so that uses can be counted and joined, and who has the key can ask for a text.

use std::io;
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::record::Object;
use super::store::{hex, signed};
use super::trail::Draft;

/// What every hash begins with, and no path does.
const BEFORE: &str = "hmac:";

/// Bytes of the hash that are told.
const TOLD: usize = 16;

/// What is hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Hashed {
    /// Paths of files and directories that were used.
    Paths,
    /// Paths of programs and scripts, those that were started and those that acted.
    Programs,
    /// Each argument that a program was started with, and the sandbox's command.
    Arguments,
}

/// Which of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(from = "Vec<Hashed>", into = "Vec<Hashed>")]
#[schemars(with = "Vec<Hashed>")]
pub struct What {
    paths: bool,
    programs: bool,
    arguments: bool,
}

impl From<Vec<Hashed>> for What {
    fn from(all: Vec<Hashed>) -> Self {
        let has = |hashed| all.contains(&hashed);
        let (paths, programs) = (has(Hashed::Paths), has(Hashed::Programs));
        Self { paths, programs, arguments: has(Hashed::Arguments) }
    }
}

impl From<What> for Vec<Hashed> {
    fn from(what: What) -> Self {
        let all = [
            (what.paths, Hashed::Paths),
            (what.programs, Hashed::Programs),
            (what.arguments, Hashed::Arguments),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, hashed)| hashed).collect()
    }
}

/// See the module.
#[derive(Clone)]
pub struct Veil {
    key: Hmac<Sha256>,
    what: What,
}

/// Where the key is, of a daemon's state directory.
#[must_use]
pub fn key_of(state: &Path) -> PathBuf {
    state.join("audit.hash-key")
}

impl Veil {
    /// By the key of a file, which is made where it is not there; `None` where nothing is hashed.
    ///
    /// # Errors
    /// It cannot be read or made, or is no key.
    pub fn open(key: &Path, what: What) -> io::Result<Option<Self>> {
        if what == What::default() {
            return Ok(None);
        }
        Ok(Some(Self { key: keyed(&signed::secret_at(key)?)?, what }))
    }

    /// By the key of a file that is there, for who asks: it covers nothing.
    ///
    /// # Errors
    /// It cannot be read, or is no key.
    pub fn read(key: &Path) -> io::Result<Self> {
        Ok(Self { key: keyed(&signed::secret_of(key)?)?, what: What::default() })
    }

    /// Whether it covers programs.
    #[must_use]
    pub fn covers_programs(&self) -> bool {
        self.what.programs
    }

    /// What stands for a text.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut hash = self.key.clone();
        hash.update(text.as_bytes());
        let hash = hash.finalize().into_bytes();
        format!("{BEFORE}{}", hex(hash.get(..TOLD).unwrap_or_default()))
    }

    fn cover(&self, text: &mut String) {
        // Known ones come here again.
        if !is_hash(text) {
            *text = self.text(text);
        }
    }

    fn cover_some(&self, is_meant: bool, text: Option<&mut String>) {
        if let Some(text) = text.filter(|_| is_meant) {
            self.cover(text);
        }
    }

    fn cover_all(&self, texts: &mut [String]) {
        if self.what.arguments {
            texts.iter_mut().for_each(|text| self.cover(text));
        }
    }

    /// Puts hashes in the place of what is to be hashed.
    pub fn put_over(&self, draft: &mut Draft) {
        if let Some(subject) = &mut draft.subject {
            self.cover_some(self.what.programs, subject.exe.as_mut());
            self.cover_some(self.what.programs, subject.script.as_mut());
        }
        match &mut draft.object {
            Object::File(file) => {
                self.cover_some(self.what.paths, Some(&mut file.path));
                self.cover_some(self.what.paths, file.other_path.as_mut());
            }
            Object::Program(program) => {
                self.cover_some(self.what.programs, Some(&mut program.path));
                self.cover_all(&mut program.args);
            }
            Object::Summary(sum) => {
                self.cover_some(self.what.programs, sum.program.as_mut());
                self.cover_some(self.what.paths, sum.directory.as_mut());
            }
            Object::Sandbox(sandbox) => {
                self.cover_all(&mut sandbox.command);
                self.cover_some(self.what.paths, sandbox.workdir.as_mut());
            }
            Object::Endpoint(_)
            | Object::Question(_)
            | Object::Socket(_)
            | Object::Gap(_)
            | Object::Alarm(_)
            | Object::Privilege(_) => {}
        }
    }
}

/// Whether a text is one of these hashes: what only begins as they do may be anything.
fn is_hash(text: &str) -> bool {
    let hash = text.strip_prefix(BEFORE).unwrap_or_default().as_bytes();
    hash.len() == 2 * TOLD && hash.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn keyed(key: &[u8; 32]) -> io::Result<Hmac<Sha256>> {
    Hmac::new_from_slice(key).map_err(|error| io::Error::other(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::store::tests::denied;

    #[test]
    fn the_same_text_has_the_same_hash_under_one_key_and_what_is_not_meant_stays() {
        let place = tempfile::tempdir().unwrap();
        let key = key_of(place.path());
        assert!(Veil::open(&key, What::default()).unwrap().is_none() && !key.exists());
        let veil = Veil::open(&key, vec![Hashed::Paths].into()).unwrap().unwrap();
        let over = |veil: &Veil| {
            let mut draft = denied("/home/u/secret");
            veil.put_over(&mut draft);
            // What was covered is not covered again.
            veil.put_over(&mut draft);
            let Object::File(file) = draft.object else { panic!("{draft:?}") };
            (file.path, draft.subject.unwrap().exe.unwrap())
        };
        let (path, exe) = over(&veil);
        assert_eq!((path.len(), exe.as_str()), (BEFORE.len() + 2 * TOLD, "/usr/bin/cat"));
        assert_eq!(path, Veil::read(&key).unwrap().text("/home/u/secret"));
        let all = Veil::open(&key, vec![Hashed::Paths, Hashed::Programs].into()).unwrap().unwrap();
        assert_eq!((over(&all).0, over(&all).1), (path.clone(), veil.text("/usr/bin/cat")));
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&key).unwrap();
        let another = Veil::open(&key, vec![Hashed::Paths].into()).unwrap().unwrap();
        assert_ne!(another.text("/home/u/secret"), path);
    }

    #[test]
    fn a_secret_that_begins_like_a_hash_is_hashed() {
        let place = tempfile::tempdir().unwrap();
        let what = vec![Hashed::Arguments].into();
        let veil = Veil::open(&key_of(place.path()), what).unwrap().unwrap();
        let mut texts = ["hmac:secret", "hmac:", "--key=x"].map(str::to_owned);
        veil.cover_all(&mut texts);
        assert!(texts.iter().all(|text| is_hash(text)), "{texts:?}");
        let once = texts.clone();
        veil.cover_all(&mut texts);
        assert_eq!(texts, once);
    }

    #[test]
    fn a_known_vector_of_hmac_is_what_it_is() {
        // RFC 4231, test case 2, whose key is shorter: padded with zeros it is the same key.
        let mut key = [0; 32];
        key[..4].copy_from_slice(b"Jefe");
        let mut hash = keyed(&key).unwrap();
        hash.update(b"what do ya want for nothing?");
        let hash = hex(&hash.finalize().into_bytes());
        assert!(hash.starts_with("5bdcc146bf60754e6a042426089575c7"), "{hash}");
    }
}
