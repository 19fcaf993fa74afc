//! Unix sockets: what a process connects to or sends to. One with a path is judged like a file that
//! is written, where it was bound, however it was found; one without by the sandbox it was made in.

use aya_ebpf::{macros::lsm, programs::LsmContext};
use clawbox_common::{
    decide::{file, unix},
    event::{Kind, Operation},
    file::WRITE,
    subject::{FileId, Standing},
    verdict::Verdict,
};

use super::{
    file::object,
    verdict::{eacces, eperm},
};
use crate::{
    attached::attached,
    emit::{self, Deed, Judged},
    kernel_read::{self, Kernel, Place},
    maps::KernelLookup,
    search, subject,
};

/// `(sock, other, newsk)`: `other` listens.
#[lsm(hook = "unix_stream_connect")]
pub fn unix_stream_connect(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a sock.
    let other = unsafe { Kernel::new(ctx.arg(1)) };
    reach(other)
}

/// `(socket, other)`: a datagram, or a connection that datagrams will take.
#[lsm(hook = "unix_may_send")]
pub fn unix_may_send(ctx: LsmContext) -> i32 {
    // SAFETY: the argument is a socket.
    let other = unsafe { Kernel::new(ctx.arg(1)) };
    if other.is_null() {
        return 0;
    }
    reach(kernel_read::sock(other))
}

#[inline(always)]
fn reach(other: Kernel) -> i32 {
    let standing = subject::standing();
    // Without a sock it is being closed, and nothing arrives.
    if matches!(standing, Standing::Outside) || other.is_null() {
        return 0;
    }
    match kernel_read::bound_path(other) {
        Some(place) => bound(&standing, place),
        None => nameless(&standing, other),
    }
}

#[inline(always)]
fn bound(standing: &Standing<'_>, place: Place) -> i32 {
    if let Ok((_, state)) = file::subject(&KernelLookup, standing)
        && search::is_opened(place.dentry, state)
    {
        return 0;
    }
    eacces(object(Operation::UnixSocket, WRITE, place))
}

#[inline(always)]
fn nameless(standing: &Standing<'_>, other: Kernel) -> i32 {
    let theirs = attached(kernel_read::birthplace(other));
    // One that is pending is nobody's.
    let theirs = u32::try_from(theirs).ok();
    let decision = unix::nameless(&KernelLookup, standing, theirs);
    if !matches!(decision.verdict, Verdict::Allow) {
        let deed = Deed {
            kind: Kind::File,
            operation: Operation::UnixSocket,
            access: WRITE,
            object: FileId::default(),
            other: 0,
        };
        emit::used(standing, Judged::by(&decision), &deed, None);
    }
    eperm(decision.goes_on())
}
