//! One boot of one guest under QEMU: output passed through as it comes, status read at the end.
//! The status travels on a serial port of its own: a guest that panics never sends one.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::KernelFiles;
use crate::process;

/// An emulated boot takes five to fifteen seconds on an idle machine; builds may be running.
const BOOT_TIME: Duration = Duration::from_secs(120);
/// Emulated kernels have been seen to crash before their first process, which is not our doing.
const BOOTS: u32 = 3;
const POLL: Duration = Duration::from_millis(20);

const READY: &str = "clawbox-vm-ready";
const EXIT: &str = "clawbox-vm-exit: ";
/// Quiet but for a panic, which ends the machine at once (`-no-reboot`), and for errors, as which the
/// kernel tells a task that has been blocked for two minutes.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet loglevel=4 oops=panic panic=-1";

/// Features that make the kernel copy and clear memory by `rep movsb` and `rep stosb`, which an emulator
/// does byte by byte: a third of the time that a guest takes to verify programs.
const SLOW_STRINGS: &str = "-erms,-fsrm,-fsrs,-fsrc,-fzrm";

/// What a guest may use.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// From start to the command's end.
    pub time: Duration,
    /// Without a line of output for so long, the machine is taken to stand still, and ended. A guest on
    /// a disk has said before what its tasks wait in.
    pub silence: Option<Duration>,
    /// What to put before each line of output, if it is not the only machine.
    pub label: Option<&'static str>,
    /// Leave the processors to the other machines where they have use for them.
    pub yields: bool,
    /// Let the guest's clock go forward by a nanosecond, and its processor's counter by one, with
    /// every instruction, and skip what it would sleep.
    pub counts_instructions: bool,
}

/// What the guest's command did.
pub struct Outcome {
    /// Its exit status.
    pub status: u8,
    /// Everything it wrote.
    pub output: String,
}

enum End {
    Finished(Outcome),
    NeverReady(&'static str),
}

/// What a machine boots from.
pub struct Media<'a> {
    /// Its first root directory.
    pub image: &'a Path,
    /// A disk, which no machine changes.
    pub disk: Option<&'a Path>,
    /// Processors.
    pub processors: u8,
}

/// Boots and waits for the command's end. The image is removed afterwards.
pub fn run(kernel: &KernelFiles, media: &Media<'_>, limits: Limits) -> Result<Outcome> {
    let result = run_until_ready(kernel, media, limits);
    let _ = fs::remove_file(media.image);
    result
}

fn run_until_ready(kernel: &KernelFiles, media: &Media<'_>, limits: Limits) -> Result<Outcome> {
    for boot in 1..=BOOTS {
        match run_once(kernel, media, limits)? {
            End::Finished(outcome) => return Ok(outcome),
            End::NeverReady(why) => {
                println!(
                    "vm: {} {why} before its first process (boot {boot} of {BOOTS})",
                    kernel.name
                );
            }
        }
    }
    bail!(
        "{} did not boot {BOOTS} times; with a busy machine try again, else look at the output above",
        kernel.name
    )
}

fn run_once(kernel: &KernelFiles, media: &Media<'_>, limits: Limits) -> Result<End> {
    let report = media.image.with_extension("report");
    let _ = fs::remove_file(&report);
    let mut child = command(kernel, media, &report, limits)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start `qemu-system-x86_64`; `cargo xtask setup --for test` installs it")?;
    let stdout = child.stdout.take().context("QEMU has no output")?;
    let heard = Arc::new(Mutex::new(Instant::now()));
    let stdout = Heard { from: stdout, last: Arc::clone(&heard) };
    let reader = thread::spawn(move || process::pass_through(stdout, limits.label));
    let waited = wait(&mut child, &report, limits, &heard);
    let output = reader.join().unwrap_or_default();
    let text = fs::read_to_string(&report).unwrap_or_default();
    let _ = fs::remove_file(&report);
    if let Some(status) = exit_status(&text) {
        return Ok(End::Finished(Outcome { status, output }));
    }
    let ready = text.contains(READY);
    match waited? {
        Waited::Ended if !ready => Ok(End::NeverReady("stopped")),
        Waited::BootTimeout => Ok(End::NeverReady("hung")),
        Waited::Silence => bail!(
            "the guest said nothing for {} s; see above what its tasks wait in",
            limits.silence.unwrap_or_default().as_secs()
        ),
        Waited::Ended => {
            bail!("the guest died before its command ended; see its last output above")
        }
        Waited::Timeout => bail!(
            "the guest's command did not end within {} s; `--timeout` sets another limit",
            limits.time.as_secs()
        ),
    }
}

/// A machine's output, and when the last of it came.
struct Heard<R> {
    from: R,
    last: Arc<Mutex<Instant>>,
}

impl<R: Read> Read for Heard<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Ok(read)
    }
}

enum Waited {
    Ended,
    BootTimeout,
    Silence,
    Timeout,
}

/// Waits for QEMU's end, and brings it about when time is up.
fn wait(
    child: &mut Child,
    report: &Path,
    limits: Limits,
    heard: &Mutex<Instant>,
) -> Result<Waited> {
    let is_silent = || {
        let last = *heard.lock().unwrap_or_else(PoisonError::into_inner);
        limits.silence.is_some_and(|silence| last.elapsed() > silence)
    };
    let start = Instant::now();
    loop {
        if child.try_wait().context("cannot wait for QEMU")?.is_some() {
            return Ok(Waited::Ended);
        }
        let written = fs::read_to_string(report).unwrap_or_default();
        let verdict = match start.elapsed() {
            _ if exit_status(&written).is_some() => Waited::Ended,
            elapsed if elapsed > limits.time => Waited::Timeout,
            elapsed if written.is_empty() && elapsed > BOOT_TIME => Waited::BootTimeout,
            _ if is_silent() => Waited::Silence,
            _ => {
                thread::sleep(POLL);
                continue;
            }
        };
        child.kill().context("cannot stop QEMU")?;
        child.wait().context("cannot wait for QEMU")?;
        return Ok(verdict);
    }
}

fn command(kernel: &KernelFiles, media: &Media<'_>, report: &Path, limits: Limits) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", if limits.yields { "10" } else { "0" }]);
    // A stopped xtask must not leave a busy VM behind.
    if let Some(setpriv) = process::find_program("setpriv") {
        command.arg(setpriv).args(["--pdeathsig", "KILL"]);
    }
    command.arg("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-reboot", "-display", "none", "-nic", "none"]);
    command.arg("-smp").arg(media.processors.to_string());
    // Emulated even where the processor could do it: every machine then tests the same.
    command.arg("-cpu");
    if limits.counts_instructions {
        command.args([kernel.cpu, "-accel", "tcg,thread=single"]);
        command.args(["-icount", "shift=0,sleep=off"]);
    } else {
        command.args([&format!("{},{SLOW_STRINGS}", kernel.cpu), "-accel", "tcg"]);
    }
    command.arg("-m").arg(limits.memory_mib.to_string());
    command.arg("-serial").arg("stdio");
    command.arg("-serial").arg(prefixed("file:", report));
    command.arg("-kernel").arg(&kernel.image);
    command.arg("-initrd").arg(media.image);
    if let Some(disk) = media.disk {
        // What the guest writes goes into a file of QEMU's own and with it.
        let file = disk.display().to_string().replace(',', ",,");
        let options = "if=virtio,format=raw,snapshot=on,cache=unsafe";
        command.arg("-drive").arg(format!("file={file},{options}"));
    }
    command.arg("-append").arg(KERNEL_ARGUMENTS);
    command
}

fn prefixed(prefix: &str, path: &Path) -> PathBuf {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    PathBuf::from(text)
}

fn exit_status(report: &str) -> Option<u8> {
    // Read while it is being written: a line counts once its end is there.
    let (complete, _) = report.rsplit_once('\n')?;
    let status = complete.lines().find_map(|line| line.strip_prefix(EXIT))?;
    status.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_report_is_a_status() {
        assert_eq!(exit_status("clawbox-vm-ready\r\nclawbox-vm-exit: 7\r\n"), Some(7));
        assert_eq!(exit_status("clawbox-vm-ready\r\n"), None);
        assert_eq!(exit_status("clawbox-vm-ready\r\nclawbox-vm-exit: 1"), None);
    }
}
