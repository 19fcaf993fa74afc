//! The programs of this machine that the demo starts.
//! Each one that is missing is named together with the package that has it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The distribution's interpreter: one from a home directory the agent's user could not read.
const PYTHON: &str = "/usr/bin/python3";

/// What the demo starts.
#[derive(Debug)]
pub struct Programs {
    /// clawbox itself, as it was built.
    pub clawbox: PathBuf,
    /// The system's curl.
    pub curl: PathBuf,
    /// The system's python.
    pub python: PathBuf,
}

impl Programs {
    /// Finds them.
    ///
    /// # Errors
    /// One is missing.
    pub fn find() -> Result<Self> {
        let clawbox = PathBuf::from(std::env::var_os("CLAWBOX").context(
            "the variable CLAWBOX does not say where clawbox is; run the demo as `cargo xtask demo`",
        )?);
        for (path, remedy) in [
            (clawbox.as_path(), "run the demo as `cargo xtask demo`, which builds it"),
            (Path::new(PYTHON), "install the package python3"),
        ] {
            if !path.exists() {
                bail!("{} is not there; {remedy}", path.display());
            }
        }
        in_path("ip").context("install the package iproute2")?;
        Ok(Self {
            clawbox: fs::canonicalize(clawbox)?,
            curl: in_path("curl").context("install the package curl")?,
            python: PYTHON.into(),
        })
    }
}

fn in_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0)
    };
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(is_program);
    Ok(fs::canonicalize(found.with_context(|| format!("there is no `{name}` in PATH"))?)?)
}
