//! Field offsets of kernel structures, read from the kernel's own BTF.
//! aya keeps the members it parses to itself, and the one library that does not is LGPL.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Where the kernel publishes its types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why an offset could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file is missing or unreadable.
    #[error(
        "cannot read the kernel's type information `{path}`: {source}; clawbox needs a kernel built \
         with CONFIG_DEBUG_INFO_BTF=y (every Debian, Ubuntu and Fedora kernel is)"
    )]
    Unreadable {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The bytes are no BTF.
    #[error("`{path}` is not BTF: {what} at byte {at}")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What does not fit.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// A structure has no such field.
    #[error(
        "this kernel's `{structure}` has no field `{field}`; clawbox does not know this kernel"
    )]
    Missing {
        /// Structure.
        structure: &'static str,
        /// Field path.
        field: &'static str,
    },
}

/// Kinds of BTF types, `include/uapi/linux/btf.h`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// A type as far as fields need it. Members stay in the file's bytes: the whole of vmlinux has
/// some hundred thousand, and a dozen are asked for.
#[derive(Clone, Copy)]
struct Type {
    kind: u32,
    name: u32,
    /// Size or referred type.
    refers: u32,
    /// Offset of the members in the type section, and their count.
    members: usize,
    count: usize,
    bitfields: bool,
}

/// A parsed `/sys/kernel/btf/vmlinux`.
pub struct KernelTypes {
    bytes: Vec<u8>,
    path: PathBuf,
    strings: usize,
    types: Vec<Type>,
    structures: HashMap<Vec<u8>, usize>,
    /// Prototypes of the functions that stand for LSM hooks.
    hooks: HashMap<Vec<u8>, usize>,
    /// See [`KernelTypes::cast`].
    cast: Option<u32>,
}

/// Gives an address a type, for programs to read there without a helper: since 6.2.
const CAST: &[u8] = b"bpf_rdonly_cast";

impl KernelTypes {
    /// Reads the running kernel's types.
    ///
    /// # Errors
    /// No BTF, or a form of it that this build cannot read.
    pub fn read(path: &Path) -> Result<Self, BtfError> {
        let bytes = std::fs::read(path)
            .map_err(|source| BtfError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, bytes)
    }

    fn parse(path: &Path, bytes: Vec<u8>) -> Result<Self, BtfError> {
        let mut parsed = Self {
            bytes,
            path: path.to_owned(),
            strings: 0,
            types: Vec::new(),
            structures: HashMap::new(),
            hooks: HashMap::new(),
            cast: None,
        };
        if parsed.bytes.get(..2) != Some(&[0x9f, 0xeb]) {
            return Err(parsed.malformed("no magic number", 0));
        }
        let head = parsed.word(4)? as usize;
        let first = head + parsed.word(8)? as usize;
        let end = first + parsed.word(12)? as usize;
        parsed.strings = head + parsed.word(16)? as usize;
        parsed.types.push(Type {
            kind: 0,
            name: 0,
            refers: 0,
            members: 0,
            count: 0,
            bitfields: false,
        });
        let mut at = first;
        while at < end {
            at = parsed.parse_type(at)?;
        }
        Ok(parsed)
    }

    /// Takes one type in and gives the offset of the next.
    fn parse_type(&mut self, at: usize) -> Result<usize, BtfError> {
        let (name, info, refers) = (self.word(at)?, self.word(at + 4)?, self.word(at + 8)?);
        let kind = (info >> 24) & 0x1f;
        let count = (info & 0xffff) as usize;
        let tail = match kind {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * count,
            kind::ENUM | kind::FUNC_PROTO => 8 * count,
            0..=kind::ENUM64 => 0,
            _ => return Err(self.malformed("an unknown kind of type", at)),
        };
        if kind == kind::STRUCT && name != 0 {
            let key = self.text(name).to_vec();
            self.structures.entry(key).or_insert(self.types.len());
        }
        if kind == kind::FUNC && self.text(name) == CAST {
            self.cast = u32::try_from(self.types.len()).ok();
        }
        if kind == kind::FUNC
            && let Some(hook) = self.text(name).strip_prefix(b"bpf_lsm_")
        {
            let hook = hook.to_vec();
            self.hooks.insert(hook, refers as usize);
        }
        let members = at + 12;
        self.types.push(Type { kind, name, refers, members, count, bitfields: info >> 31 == 1 });
        Ok(members + tail)
    }

    fn malformed(&self, what: &'static str, at: usize) -> BtfError {
        BtfError::Malformed { path: self.path.clone(), what, at }
    }

    fn word(&self, at: usize) -> Result<u32, BtfError> {
        match self.bytes.get(at..at + 4) {
            Some(&[a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
            _ => Err(self.malformed("it ends too early", at)),
        }
    }

    fn text(&self, name: u32) -> &[u8] {
        let from = self.bytes.get(self.strings + name as usize..).unwrap_or_default();
        from.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// Byte offset of `field`, which may be a path (`f_path.dentry`) and may lie in anonymous
    /// members.
    ///
    /// # Errors
    /// The structure or the field does not exist, or is a bit field.
    pub fn offset(&self, structure: &'static str, field: &'static str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing { structure, field };
        let mut id = *self.structures.get(structure.as_bytes()).ok_or_else(missing)?;
        let mut bits = 0;
        for part in field.split('.') {
            let (offset, next) = self.member(id, part.as_bytes(), 0).ok_or_else(missing)?;
            bits += offset;
            id = next;
        }
        if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing()) }
    }

    /// How many arguments an LSM hook has; `None` where this kernel does not have the hook.
    #[must_use]
    pub fn hook_arguments(&self, hook: &str) -> Option<usize> {
        let prototype = *self.hooks.get(hook.as_bytes())?;
        self.types.get(prototype).map(|found| found.count)
    }

    /// Whether the kernel has a function of this name whose arguments are what its source says: BTF
    /// leaves out those that the compiler has changed or taken apart.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        let is_named = |found: &Type| {
            let text = self.bytes.get(self.strings + found.name as usize..).unwrap_or_default();
            text.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
        };
        self.types.iter().any(|found| found.kind == kind::FUNC && is_named(found))
    }

    /// The numbers of `bpf_rdonly_cast` and of a structure to cast to; `None` where this kernel lacks
    /// one of them.
    #[must_use]
    pub fn cast(&self, structure: &str) -> Option<(u32, u32)> {
        let structure = *self.structures.get(structure.as_bytes())?;
        Some((self.cast?, u32::try_from(structure).ok()?))
    }

    /// Bit offset and type of a member. `depth` bounds a file that nests without end.
    fn member(&self, id: usize, wanted: &[u8], depth: u32) -> Option<(u32, usize)> {
        let composite = self.resolved(id)?;
        if depth > 16 || !matches!(composite.kind, kind::STRUCT | kind::UNION) {
            return None;
        }
        for index in 0..composite.count {
            let at = composite.members + 12 * index;
            let name = self.word(at).ok()?;
            let of = self.word(at + 4).ok()? as usize;
            let raw = self.word(at + 8).ok()?;
            let offset = if composite.bitfields { raw & 0x00ff_ffff } else { raw };
            if name != 0 && self.text(name) == wanted {
                return Some((offset, of));
            }
            if name == 0
                && let Some((inner, found)) = self.member(of, wanted, depth + 1)
            {
                return Some((offset + inner, found));
            }
        }
        None
    }

    /// The type behind typedefs and qualifiers.
    fn resolved(&self, mut id: usize) -> Option<Type> {
        for _ in 0..16 {
            let found = *self.types.get(id)?;
            match found.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = found.refers as usize;
                }
                _ => return Some(found),
            }
        }
        None
    }
}

impl std::fmt::Debug for KernelTypes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let named = self.types.iter().filter(|found| found.name != 0).count();
        write!(f, "KernelTypes({} types, {named} named)", self.types.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_of_the_running_kernel_are_found_through_paths_and_anonymous_members() {
        let types = KernelTypes::read(Path::new(VMLINUX)).unwrap();
        assert_eq!(types.offset("list_head", "prev").unwrap(), 8);
        let path = types.offset("file", "f_path").unwrap();
        assert!(types.offset("file", "f_path.dentry").unwrap() > path);
        // `d_lockref` lies in no anonymous member on some kernels and in one on others.
        assert!(types.offset("dentry", "d_inode").unwrap() > 0);
    }

    #[test]
    fn a_field_that_does_not_exist_is_named_in_the_error() {
        let types = KernelTypes::read(Path::new(VMLINUX)).unwrap();
        let error = types.offset("task_struct", "no_such_field").unwrap_err().to_string();
        assert!(error.contains("`task_struct`") && error.contains("`no_such_field`"), "{error}");
    }

    #[test]
    fn bytes_that_are_not_btf_are_an_error_and_never_a_panic() {
        let whole = std::fs::read(VMLINUX).unwrap();
        for length in [0, 1, 3, 23, 24, 100, 4096, whole.len() / 2] {
            let cut = whole[..length].to_vec();
            assert!(KernelTypes::parse(Path::new("cut"), cut).is_err(), "{length} bytes");
        }
        let mut scrambled = whole[..100_000].to_vec();
        scrambled.iter_mut().skip(24).for_each(|byte| *byte = byte.wrapping_mul(31));
        assert!(KernelTypes::parse(Path::new("scrambled"), scrambled).is_err());
    }
}
