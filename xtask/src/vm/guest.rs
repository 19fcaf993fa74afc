//! A guest's root directory: the machine's programs, and on top what this one run brings.
//! The kernel unpacks both archives, one after the other, into memory.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::kernel::KernelFiles;
use super::userland;
use crate::process;

/// Where clawbox is in the guest.
pub const CLAWBOX: &str = "/bin/clawbox";
/// What goes onto a guest's disk before that becomes its root directory. The script knows it too.
const BROUGHT: &str = "brought";
/// The guest mounts these itself, over whatever a copy would bring.
const MOUNTED: [&str; 5] = ["/dev", "/proc", "/run", "/sys", "/tmp"];

const INIT: &str = include_str!("init.sh");
const SWITCH: &str = include_str!("switch.sh");
const ETC: [(&str, &str); 5] = [
    (
        "passwd",
        "root:x:0:0:root:/root:/bin/bash\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
         sandbox:x:998:998:sandbox:/sandbox:/bin/bash\n",
    ),
    ("group", "root:x:0:\nnogroup:x:65534:\nsandbox:x:998:\n"),
    // A machine finds its own name here, as Debian's installer has it: git asks.
    ("hosts", "127.0.0.1 localhost\n127.0.1.1 clawbox-vm\n::1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nservices: files\n"),
    ("resolv.conf", "nameserver 127.0.0.1\n"),
];

/// What one run brings into a guest.
#[derive(Clone)]
pub struct Guest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Another one, run when that has ended, however it did; its failure counts too. May be empty.
    pub afterwards: Vec<String>,
    /// Host files and directories.
    pub copies: Vec<Copy>,
    /// The command's environment, beyond a login's.
    pub variables: Vec<(String, String)>,
    /// Whether its root directory is a disk with an agent's everyday tools, or memory.
    pub has_disk: bool,
}

/// A host path and where it appears in the guest.
#[derive(Clone)]
pub struct Copy {
    /// On the host.
    pub from: PathBuf,
    /// In the guest.
    pub to: PathBuf,
}

impl Copy {
    /// A copy to a place where the guest will see it.
    pub fn new(from: PathBuf, to: PathBuf) -> Result<Self> {
        if !to.is_absolute() || to == Path::new("/") {
            bail!("`{}` must be an absolute path below `/`", to.display());
        }
        if MOUNTED.iter().any(|mounted| to.starts_with(mounted)) {
            bail!(
                "the guest mounts its own {}; choose another place, such as /opt{}",
                MOUNTED.join(", "),
                to.display()
            );
        }
        Ok(Self { from, to })
    }
}

impl Guest {
    /// A guest that runs `command` and has no more than the machine's programs.
    pub fn new(command: Vec<String>) -> Self {
        let (copies, variables) = (Vec::new(), Vec::new());
        Self { command, afterwards: Vec::new(), copies, variables, has_disk: false }
    }

    /// The same guest with a test program as its command, less the tests whose name contains one of
    /// `names`.
    pub fn leaving_out(&self, names: &[&str]) -> Self {
        let mut lighter = self.clone();
        for name in names {
            lighter.command.extend(["--skip".to_owned(), (*name).to_owned()]);
        }
        lighter
    }

    /// The command as a script.
    fn script(&self) -> String {
        let mut script = String::from("#!/bin/sh\n");
        for (name, value) in &self.variables {
            script.push_str(&format!("export {name}={}\n", quoted(value)));
        }
        let words = |command: &[String]| -> String {
            let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
            words.join(" ")
        };
        script.push_str(&format!("{}\nstatus=$?\n", words(&self.command)));
        if !self.afterwards.is_empty() {
            script.push_str(&format!("{} || status=$?\n", words(&self.afterwards)));
        }
        script.push_str("exit $status\n");
        script
    }
}

/// Writes the image for one boot of `kernel`, on top of `base` if there is one; its path.
pub fn write_image(
    directory: &Path,
    base: Option<&Path>,
    kernel: &KernelFiles,
    guest: &Guest,
) -> Result<PathBuf> {
    remove_abandoned(directory);
    // By process and kernel: two VMs may be started at once.
    let image = directory.join(format!("image-{}.{}.cpio", std::process::id(), kernel.name));
    let top = image.with_extension("top");
    write_top(&top, kernel, guest)?;
    let join = || -> io::Result<()> {
        let mut out = File::create(&image)?;
        for part in base.into_iter().chain([top.as_path()]) {
            io::copy(&mut File::open(part)?, &mut out)?;
        }
        fs::remove_file(&top)
    };
    join().with_context(|| format!("cannot write `{}`", image.display()))?;
    Ok(image)
}

/// Writes the image for one boot of `kernel` that goes on with the system on the disk; its path.
pub fn write_switch(directory: &Path, kernel: &KernelFiles) -> Result<PathBuf> {
    remove_abandoned(directory);
    let image = directory.join(format!("image-{}.{}.cpio", std::process::id(), kernel.name));
    let mut archive = Archive::create(&image)?;
    archive.file(Path::new("init"), 0o755, SWITCH.as_bytes())?;
    add_disk_support(&mut archive, kernel)?;
    archive.finish()?;
    Ok(image)
}

/// Removes the images of runs that were interrupted: each is some hundred megabytes.
fn remove_abandoned(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix("image-")?.split('.').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another run may be doing the same.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn write_top(path: &Path, kernel: &KernelFiles, guest: &Guest) -> Result<()> {
    let mut archive = Archive::create(path)?;
    archive.file(Path::new("init"), 0o755, INIT.as_bytes())?;
    if guest.has_disk {
        add_disk_support(&mut archive, kernel)?;
        archive.go_below(BROUGHT);
        archive.file(Path::new("init"), 0o755, INIT.as_bytes())?;
    } else {
        add_modules(&mut archive, &kernel.modules)?;
    }
    add_system(&mut archive)?;
    archive.file(Path::new("vm/command"), 0o755, guest.script().as_bytes())?;
    let mut programs = Vec::new();
    for copy in &guest.copies {
        archive.copy_tree(&copy.from, &userland::in_guest(&copy.to))?;
        collect_programs(&copy.from, &mut programs);
    }
    userland::add_libraries(&mut archive, &programs)?;
    archive.finish()
}

/// What a disk becomes the root directory by.
fn add_disk_support<W: Write>(archive: &mut Archive<W>, kernel: &KernelFiles) -> Result<()> {
    let busybox = process::find_program("busybox").context("`busybox` is not installed")?;
    archive.copy_contents(&busybox, Path::new("usr/bin/busybox"))?;
    archive.directory(Path::new("dev"), 0o755)?;
    archive.directory(Path::new("disk"), 0o755)?;
    add_modules(archive, &[&kernel.modules[..], &kernel.disk_modules[..]].concat())
}

/// The directories and settings that no package brings.
fn add_system<W: Write>(archive: &mut Archive<W>) -> Result<()> {
    for (directory, mode) in
        [("dev", 0o755), ("proc", 0o555), ("root", 0o700), ("run", 0o755), ("sys", 0o555)]
    {
        archive.directory(Path::new(directory), mode)?;
    }
    archive.directory(Path::new("tmp"), 0o1777)?;
    archive.directory(Path::new("var/tmp"), 0o1777)?;
    for (name, text) in ETC {
        archive.file(&Path::new("etc").join(name), 0o644, text.as_bytes())?;
    }
    Ok(())
}

fn add_modules<W: Write>(archive: &mut Archive<W>, modules: &[PathBuf]) -> Result<()> {
    let mut order = String::new();
    for module in modules {
        let name = module.file_name().context("a module without a name")?;
        archive.copy(module, &Path::new("vm/modules").join(name))?;
        order.push_str(&format!("{}\n", name.to_string_lossy()));
    }
    archive.file(Path::new("vm/modules.order"), 0o644, order.as_bytes())
}

fn collect_programs(path: &Path, programs: &mut Vec<PathBuf>) {
    if path.is_symlink() {
        return;
    }
    if path.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            collect_programs(&entry.path(), programs);
        }
    } else if path.is_file() && userland::is_elf(path) {
        programs.push(path.to_path_buf());
    }
}

/// One word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_reaches_the_guest_word_by_word() {
        let mut guest = Guest::new(vec!["sh".to_owned(), "-c".to_owned(), "echo 'a b'".to_owned()]);
        guest.variables.push(("NAME".to_owned(), "$x".to_owned()));
        let first = "#!/bin/sh\nexport NAME='$x'\n'sh' '-c' 'echo '\\''a b'\\'''\nstatus=$?\n";
        assert_eq!(guest.script(), format!("{first}exit $status\n"));
        guest.afterwards.push("last".to_owned());
        assert_eq!(guest.script(), format!("{first}'last' || status=$?\nexit $status\n"));
    }

    #[test]
    fn a_copy_that_a_mount_would_hide_is_refused() {
        let error = Copy::new(PathBuf::from("."), PathBuf::from("/tmp/x")).err().unwrap();
        assert!(error.to_string().contains("/opt/tmp/x"), "{error}");
        assert!(Copy::new(PathBuf::from("."), PathBuf::from("relative")).is_err());
        assert!(Copy::new(PathBuf::from("."), PathBuf::from("/opt/x")).is_ok());
    }
}
