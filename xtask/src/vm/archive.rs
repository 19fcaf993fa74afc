//! Writes cpio archives ("newc"), the format in which a kernel takes its first root directory.
//! Owner and group are always root; parents are made as needed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const PERMISSIONS: u32 = 0o7777;

/// An archive being written.
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
    /// Paths written so far, to write none twice and every parent once.
    seen: BTreeSet<PathBuf>,
    /// Where everything goes.
    top: PathBuf,
}

impl Archive<BufWriter<File>> {
    /// A new archive at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self::new(BufWriter::new(file)))
    }
}

impl<W: Write> Archive<W> {
    /// A new archive, written to `out`.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0, seen: BTreeSet::new(), top: PathBuf::new() }
    }

    /// Puts what follows below `top`, as if that were the root directory.
    pub fn go_below(&mut self, top: &str) {
        self.top = PathBuf::from(top);
    }

    /// A directory.
    pub fn directory(&mut self, path: &Path, mode: u32) -> Result<()> {
        self.entry(path, DIRECTORY | mode, 0, &[])
    }

    /// A file with these bytes.
    pub fn file(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        self.entry(path, REGULAR | mode, 0, bytes)
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: &Path, target: &Path) -> Result<()> {
        self.entry(path, SYMLINK | 0o777, 0, target.as_os_str().as_bytes())
    }

    /// The file, link or directory (without its contents) at `from`, as `path`.
    pub fn copy(&mut self, from: &Path, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(from)
            .with_context(|| format!("cannot read `{}`", from.display()))?;
        if meta.is_symlink() {
            let target = fs::read_link(from)
                .with_context(|| format!("cannot read the link `{}`", from.display()))?;
            return self.symlink(path, &target);
        }
        if meta.is_dir() {
            return self.directory(path, meta.mode() & PERMISSIONS);
        }
        if meta.is_file() {
            return self.copy_contents(from, path);
        }
        Ok(()) // A socket, pipe or device: the guest makes its own.
    }

    /// The bytes, mode and time of the file that `from` names or leads to, as `path`.
    pub fn copy_contents(&mut self, from: &Path, path: &Path) -> Result<()> {
        let read = || -> io::Result<_> { Ok((fs::metadata(from)?, fs::read(from)?)) };
        let (meta, bytes) = read().with_context(|| format!("cannot read `{}`", from.display()))?;
        // Python trusts a compiled module only while its source's time is the one it noted.
        let time = u32::try_from(meta.mtime()).unwrap_or(0);
        self.entry(path, REGULAR | (meta.mode() & PERMISSIONS), time, &bytes)
    }

    /// A directory and all it holds.
    pub fn copy_tree(&mut self, from: &Path, path: &Path) -> Result<()> {
        self.copy(from, path)?;
        if !fs::symlink_metadata(from).is_ok_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        let entries =
            fs::read_dir(from).with_context(|| format!("cannot list `{}`", from.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list `{}`", from.display()))?;
            self.copy_tree(&entry.path(), &path.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Writes the end mark.
    pub fn finish(mut self) -> Result<()> {
        self.record(b"TRAILER!!!", 0, 0, &[])?;
        self.out.flush().context("cannot write the archive")
    }

    fn entry(&mut self, path: &Path, mode: u32, time: u32, bytes: &[u8]) -> Result<()> {
        self.placed(&self.top.join(path.strip_prefix("/").unwrap_or(path)), mode, time, bytes)
    }

    fn placed(&mut self, path: &Path, mode: u32, time: u32, bytes: &[u8]) -> Result<()> {
        if path.as_os_str().is_empty() || self.seen.contains(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.placed(parent, DIRECTORY | 0o755, 0, &[])?;
        }
        self.record(path.as_os_str().as_bytes(), mode, time, bytes)
            .with_context(|| format!("cannot add `{}` to the archive", path.display()))?;
        self.seen.insert(path.to_path_buf());
        Ok(())
    }

    fn record(&mut self, name: &[u8], mode: u32, time: u32, bytes: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(bytes.len()).context("larger than 4 GiB")?;
        let name_size = u32::try_from(name.len() + 1)?;
        let links = 1;
        let fields =
            [self.inode, mode, 0, 0, links, time, size, 0, 0, 0, 0, name_size, 0].map(hex).concat();
        let header = [b"070701", fields.as_bytes(), name, &[0]].concat();
        self.out.write_all(&header)?;
        self.out.write_all(padding(header.len()))?;
        self.out.write_all(bytes)?;
        self.out.write_all(padding(bytes.len()))?;
        Ok(())
    }
}

fn hex(number: u32) -> String {
    format!("{number:08x}")
}

/// Zeros up to the next multiple of four.
fn padding(length: usize) -> &'static [u8] {
    &[0; 3][..length.wrapping_neg() % 4]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fill: impl FnOnce(&mut Archive<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        fill(&mut archive);
        archive.finish().unwrap();
        bytes
    }

    /// Name, mode and contents of every record.
    fn read_back(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            records.push((name, mode, bytes[start..start + size].to_vec()));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
        }
        records
    }

    #[test]
    fn parents_come_before_their_children_and_once() {
        let bytes = written(|archive| {
            archive.file(Path::new("/a/b/one"), 0o755, b"12345").unwrap();
            archive.file(Path::new("/a/two"), 0o600, b"").unwrap();
            archive.file(Path::new("/a/two"), 0o600, b"again").unwrap();
        });
        assert_eq!(
            read_back(&bytes),
            [
                ("a".to_owned(), 0o040_755, vec![]),
                ("a/b".to_owned(), 0o040_755, vec![]),
                ("a/b/one".to_owned(), 0o100_755, b"12345".to_vec()),
                ("a/two".to_owned(), 0o100_600, vec![]),
                ("TRAILER!!!".to_owned(), 0, vec![]),
            ]
        );
    }

    #[test]
    fn what_goes_below_a_directory_keeps_its_own_path_there() {
        let bytes = written(|archive| {
            archive.directory(Path::new("etc"), 0o700).unwrap();
            archive.go_below("brought");
            archive.file(Path::new("/etc/hosts"), 0o644, b"").unwrap();
        });
        let names: Vec<String> = read_back(&bytes).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["etc", "brought", "brought/etc", "brought/etc/hosts", "TRAILER!!!"]);
    }

    #[test]
    fn a_link_holds_its_target() {
        let bytes = written(|archive| {
            archive.symlink(Path::new("/bin"), Path::new("usr/bin")).unwrap();
        });
        assert_eq!(read_back(&bytes)[0], ("bin".to_owned(), 0o120_777, b"usr/bin".to_vec()));
    }
}
