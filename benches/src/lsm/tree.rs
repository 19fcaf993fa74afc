//! The files that are opened, and the policy for them. The rule stands at the tree's top, so that the
//! way from a file to its rule is as long as its path is deep.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

/// Components of the opened paths.
pub const DEPTHS: [usize; 3] = [3, 10, 30];
/// Batches whose least is a figure.
pub const BATCHES: usize = 7;
/// Files that a batch opens once each.
pub const FILES: usize = 100;

/// The working directory too: `find` opens it.
pub const TOP: &str = "/bench";
const SCRATCH: &str = "/scratch";
/// What `find` goes over.
pub const WALKED: &str = "/bench/walked";
/// In how many directories how many files are, there.
const WALKED_DIRECTORIES: usize = 40;
const WALKED_FILES: usize = 50;
/// Two names of one file, in turn.
pub const RENAMED: [&str; 2] = ["/scratch/one", "/scratch/other"];

/// What the policy lets be read.
pub const READ_ONLY: &[&str] = &[TOP, "/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/opt"];
/// What it lets be written.
pub const READ_WRITE: &[&str] = &[SCRATCH, "/dev/null"];

/// How many files the walk goes over.
pub const fn walked() -> usize {
    WALKED_DIRECTORIES * WALKED_FILES
}

/// A file's path, of so many components. Batch 0 has one file, the others [`FILES`].
pub fn file(depth: usize, batch: usize, number: usize) -> String {
    format!("{}/{batch}-{number}", directory(depth))
}

fn directory(depth: usize) -> String {
    let mut path = format!("{TOP}/{depth}");
    for level in 3..depth {
        path += &format!("/level-{level}");
    }
    path
}

/// Makes all of it, for any user.
pub fn make() -> Result<()> {
    for depth in DEPTHS {
        fs::create_dir_all(directory(depth))?;
        fs::write(file(depth, 0, 0), "x")?;
        // One batch more than is counted: the first is not.
        for batch in 1..=BATCHES + 1 {
            for number in 0..FILES {
                fs::write(file(depth, batch, number), "x")?;
            }
        }
    }
    for directory in 0..WALKED_DIRECTORIES {
        let directory = format!("{WALKED}/{directory}");
        fs::create_dir_all(&directory)?;
        for number in 0..WALKED_FILES {
            fs::write(format!("{directory}/{number}"), "x")?;
        }
    }
    fs::create_dir_all(SCRATCH)?;
    fs::set_permissions(SCRATCH, Permissions::from_mode(0o777))?;
    Ok(())
}

/// Writes the policy, by which the program may connect to the other end of its connection.
pub fn write_policy(to: &Path, program: &Path, peer: SocketAddr) -> Result<()> {
    let text = format!(
        "version: 1\nfilesystem_policy:\n  read_only: [{}]\n  read_write: [{}]\n\
         network_policies:\n  bench:\n    endpoints:\n      \
         - {{ host: {}, port: {}, host_loopback: true }}\n    \
         binaries: [{{ path: {} }}]\n",
        READ_ONLY.join(", "),
        READ_WRITE.join(", "),
        peer.ip(),
        peer.port(),
        program.display(),
    );
    Ok(fs::write(to, text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_as_many_components_as_its_depth() {
        for depth in DEPTHS {
            assert_eq!(Path::new(&file(depth, 1, 2)).components().count(), depth + 1, "with `/`");
        }
    }
}
