//! Process 1 of a sandbox's pid namespace. It starts the command, passes signals on to it, reaps
//! whoever is left to it, and ends with the command's status; with it ends all that still runs.
//!
//! It is the first process itself, under the same backstops as the command and a narrower filter,
//! and never executes anything: without an identity the kernel programs deny it everything.

use std::mem::MaybeUninit;

use nix::errno::Errno;
use nix::libc::{self, c_int, pid_t, siginfo_t, sigset_t};
use seccompiler::BpfProgramRef;

use super::watch::FORWARDED;

/// All system calls that are left to it, once the command is on its way.
pub const CALLS: [libc::c_long; 6] = [
    libc::SYS_close_range,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_wait4,
    libc::SYS_kill,
    libc::SYS_exit_group,
    // How the kernel goes on with a wait that a stop has interrupted.
    libc::SYS_restart_syscall,
];

/// What the calling process has of signals, to be given to the command as it was.
struct Signals {
    mask: sigset_t,
    on_child: libc::sigaction,
}

/// Forks. Returns in the child, which is to execute the command; the parent stays behind as
/// process 1 and never returns. For a process with one thread: system calls only.
///
/// # Errors
/// There is no process 1 and no command.
pub fn start(filter: BpfProgramRef<'_>) -> Result<(), Errno> {
    // Its memory and descriptors are nobody's to look at, from before there is anybody to do so.
    // The command becomes dumpable again by its exec.
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    let signals = Signals::hold()?;
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two ints of ours.
    Errno::result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // Not fork(3), which would run the handlers that libraries have registered for it.
    // SAFETY: without CLONE_VM the child has memory of its own and goes on here on its copy of
    // this stack.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    match Errno::result(pid)? {
        0 => {
            wait_for_end(ends)?;
            signals.give_back()
        }
        pid => serve(pid as pid_t, filter),
    }
}

impl Signals {
    /// Blocks all, so that none is lost before it is waited for; and wants to be told of the end of
    /// children, which a parent's ignoring of SIGCHLD would prevent.
    fn hold() -> Result<Self, Errno> {
        let mut held = MaybeUninit::<Self>::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: all zeroes is SIG_DFL with no flags.
        let default: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: both fields are written by the kernel, or an error is returned first.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            let mask = &raw mut (*held.as_mut_ptr()).mask;
            Errno::result(libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), mask))?;
            let on_child = &raw mut (*held.as_mut_ptr()).on_child;
            Errno::result(libc::sigaction(libc::SIGCHLD, &raw const default, on_child))?;
            Ok(held.assume_init())
        }
    }

    fn give_back(&self) -> Result<(), Errno> {
        // SAFETY: the kernel reads what it has written itself.
        unsafe {
            let on_child = &raw const self.on_child;
            Errno::result(libc::sigaction(libc::SIGCHLD, on_child, std::ptr::null_mut()))?;
            let mask = &raw const self.mask;
            Errno::result(libc::sigprocmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()))?;
        }
        Ok(())
    }
}

/// Waits until process 1 has closed its end of a pipe, by which it says that it is ready.
fn wait_for_end([read, write]: [c_int; 2]) -> Result<(), Errno> {
    let mut nothing = 0_u8;
    // SAFETY: both descriptors are this process's own copies; at most one byte is written.
    unsafe {
        Errno::result(libc::close(write))?;
        Errno::result(libc::read(read, (&raw mut nothing).cast(), 1)).map(drop)
    }
}

/// The life of process 1.
fn serve(command: pid_t, filter: BpfProgramRef<'_>) -> ! {
    // SAFETY: numbers and a string that lives for ever.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"clawbox-init".as_ptr());
        // Out of the terminal's foreground, so that what is typed there reaches the command once.
        libc::setsid();
        libc::chdir(c"/".as_ptr());
    }
    if seccompiler::apply_filter(filter).is_err() {
        exit(super::child::status::FAILED.into());
    }
    // Nobody waits for the end of a file because of it, and nothing of clawbox is in it. One of
    // these ends is what the command waits for.
    // SAFETY: takes numbers; nothing here uses a descriptor from now on.
    unsafe { libc::syscall(libc::SYS_close_range, 0u32, u32::MAX, 0) };
    let awaited = awaited();
    loop {
        reap(command);
        let mut info = MaybeUninit::<siginfo_t>::zeroed();
        // SAFETY: a set and a siginfo of ours; no time limit.
        let number =
            unsafe { libc::sigtimedwait(&raw const awaited, info.as_mut_ptr(), std::ptr::null()) };
        // SAFETY: all zeroes is a valid siginfo, and the kernel writes a valid one.
        let info = unsafe { info.assume_init() };
        if number > 0 && number != libc::SIGCHLD && is_from_outside(&info) {
            // SAFETY: takes numbers; the command has not been waited for, so the number is its own.
            unsafe { libc::kill(command, number) };
        }
    }
}

/// What clawbox passes on, and the end of children.
fn awaited() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: written by the first call, changed by the others.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in FORWARDED {
            libc::sigaddset(set.as_mut_ptr(), signal as c_int);
        }
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        set.assume_init()
    }
}

/// Who is not in this namespace has the number 0 in it. A sender can claim a number only under
/// codes that are not looked at here. The terminal's own come from before [`serve`] left it.
fn is_from_outside(info: &siginfo_t) -> bool {
    // SAFETY: a signal that was sent by kill(2) has a sender's number.
    let by_outsider = || unsafe { info.si_pid() } == 0;
    info.si_code == libc::SI_KERNEL || (info.si_code == libc::SI_USER && by_outsider())
}

/// Waits for all that have ended; ends with the command, and the kernel then ends the others.
fn reap(command: pid_t) {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes one int of ours.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            ended if ended == command => exit(code(status)),
            1.. => {}
            _ => return,
        }
    }
}

/// As the shell counts: no signal can end process 1 in the way that it ended the command.
fn code(status: c_int) -> c_int {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

fn exit(code: c_int) -> ! {
    // SAFETY: ends the process at once.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_s_end_is_told_as_a_shell_does() {
        for (status, told) in [(0, 0), (7 << 8, 7), (255 << 8, 255), (9, 137), (15 | 0x80, 143)] {
            assert_eq!(code(status), told, "{status:#x}");
        }
    }

    #[test]
    fn only_signals_from_outside_or_the_kernel_are_passed_on() {
        let sent = |code: c_int, by: pid_t| {
            // SAFETY: all zeroes is a valid siginfo; the sender is its fifth int on every 64-bit
            // Linux, which the assertion below holds.
            let mut info: siginfo_t = unsafe { std::mem::zeroed() };
            info.si_code = code;
            // SAFETY: inside the 128 bytes of a siginfo.
            unsafe { (&raw mut info).cast::<pid_t>().add(4).write(by) };
            // SAFETY: written above.
            assert_eq!(unsafe { info.si_pid() }, by);
            is_from_outside(&info)
        };
        assert!(sent(libc::SI_USER, 0));
        assert!(sent(libc::SI_KERNEL, 0));
        assert!(!sent(libc::SI_USER, 2));
        assert!(!sent(libc::SI_QUEUE, 0));
        assert!(!sent(libc::SI_TKILL, 0));
    }
}
